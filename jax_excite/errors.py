"""What goes wrong, by what was wrong with it. All are `ValueError`s."""


class ExciteError(ValueError):
    """Base of every error that this library raises about a caller's input."""


class ImageError(ExciteError):
    """An image of the wrong rank, channel count, dtype or range, or a file that is no image."""


class TargetError(ExciteError):
    """A class index out of range, an unknown class name, or a target of the wrong shape."""


class GatingError(ExciteError):
    """A gate, temperature or site that does not exist or does not fit the function."""


class SettingError(ExciteError):
    """A number, an array or an option that is out of its range, or does not fit the others."""


class WeightsError(ExciteError):
    """Weights that do not fit the model, or a file that does not hold weights."""


class DataError(ExciteError):
    """A data set that is not there, cannot be had, or lacks what was asked of it."""


class GateWarning(UserWarning):
    """A gate that the recipe softens elsewhere is left hard; `sites` says where and why."""
