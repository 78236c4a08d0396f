"""`excite` and `sites`: the machine that softens the gates of a function."""
