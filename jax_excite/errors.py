"""Errors by the kind of input that was wrong, all of them `ValueError`s, and a warning."""


class ExciteError(ValueError):
    """Base of every error that this library raises about a caller's input."""


class InputError(ExciteError):
    """An input of the wrong type, rank, dtype or range."""


class ImageError(InputError):
    """An image of the wrong rank, channel count, dtype or range, or a file that is not an image."""


class TargetError(ExciteError):
    """A class index out of range, an unknown class name, or a target of the wrong shape."""


class GatingError(ExciteError):
    """A gate, temperature or site that does not exist or does not fit the function."""


class SettingError(ExciteError):
    """A number, an array or an option that is out of range, or does not fit the others."""


class WeightsError(ExciteError):
    """Weights that do not fit the model, or a file that does not hold weights."""


class NetworkError(ExciteError):
    """A file that holds no network, or a network with operators that are not supported."""


class DataError(ExciteError):
    """A data set that is missing, cannot be obtained, or lacks the requested content."""


class GateWarning(UserWarning):
    """A gate of a kind that the gating softens is left hard; `sites` lists where and why."""
