"""Losses that keep the invariant module independent of the active domain module.

    plugin              the paper's mutual information of soft symbols          0 <= value <= ln C
    club                an upper bound of mutual information, with a critic     any value
    infonce             a lower bound, with a critic                            value <= ln N
    hsic                normalised Hilbert-Schmidt independence criterion       0 <= value <= 1
    cross_correlation   mean square of the cross-correlations                   0 <= value <= 1

What they share (projection, queue, standardisation, who gets which gradient) is in `base`. They are to train on; what is
reported is measured by other estimators, see `iclm.evaluation.independence`.
"""

from __future__ import annotations

from iclm.errors import ConfigurationError
from iclm.model.configuration_iclm import ICLMConfig
from iclm.model.independence.base import IndependenceLoss, IndependenceTerms
from iclm.model.independence.club import CLUB
from iclm.model.independence.cross_correlation import CrossCorrelation
from iclm.model.independence.hsic import HSIC
from iclm.model.independence.infonce import InfoNCE
from iclm.model.independence.plugin import PluginMutualInformation, plugin_mutual_information

LOSSES: dict[str, type[IndependenceLoss]] = {
    "plugin": PluginMutualInformation,
    "club": CLUB,
    "infonce": InfoNCE,
    "hsic": HSIC,
    "cross_correlation": CrossCorrelation,
}

__all__ = [
    "CLUB",
    "HSIC",
    "LOSSES",
    "CrossCorrelation",
    "IndependenceLoss",
    "IndependenceTerms",
    "InfoNCE",
    "PluginMutualInformation",
    "build_independence",
    "plugin_mutual_information",
]


def build_independence(config: ICLMConfig) -> IndependenceLoss:
    """The independence loss that a configuration asks for.

    Args:
        config: reads mi_loss, and what `IndependenceLoss` reads.

    Raises:
        ConfigurationError: an unknown mi_loss, or no hidden_size.
    """
    if config.mi_loss not in LOSSES:
        raise ConfigurationError(f"mi_loss is {config.mi_loss!r}; use one of {', '.join(LOSSES)}")
    return LOSSES[config.mi_loss](config)
