"""Networks as models of `river <https://riverml.xyz>`_, for its metrics, pipelines and evaluation.

It needs river: ``pip install 'akkordeon[river]'``.
"""

try:
    import river.base  # noqa: F401 - to say at once that it is missing
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("ak.river needs river: pip install 'akkordeon[river]'") from error

from akkordeon.session.river.classifier import Classifier
from akkordeon.session.river.regressor import Regressor

__all__ = ["Classifier", "Regressor"]
