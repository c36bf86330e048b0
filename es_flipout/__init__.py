"""Evolution strategies at the speed of the physics: one forward for a whole population, by flipout.

`__init__.pyi` says where each name is from; a name is imported when it is first used, so that
`import es_flipout` and the commands' --help do not wait for torch.
"""

from lazy_loader import attach_stub

from es_flipout.envs.gymnasium_ids import register_native_ids

__version__ = "0.2.0"

__getattr__, __dir__, _names = attach_stub(__name__, __file__)
__all__ = [*_names, "__version__"]

register_native_ids()
