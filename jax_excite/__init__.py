"""Excitation pullbacks in JAX: see why a network decides as it does.

After "Tapping into the Black Box" (Satkiewicz, 2025). `docs/` explains how to use the package.
`__init__.pyi` lists everything that it exports, each with the module that defines it. A name is
imported when it is first used, so that `jax-excite --help` does not wait for JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
