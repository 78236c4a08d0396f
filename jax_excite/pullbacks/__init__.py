"""Pullbacks, class grids, projected gradient ascent and calibration of one network."""
