"""`excite` and `sites`: the machinery that softens the gates of a function."""
