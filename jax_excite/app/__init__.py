"""The page of `jax-excite app`, on which people explore networks in a browser. Needs `[app]`."""
