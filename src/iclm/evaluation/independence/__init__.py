"""How independent two sets of states are: figures to report, never losses to train on.

    ksg           mutual information from nearest neighbours       nats; 0 where independent, in few dimensions
    hsic          kernel test of independence                      0 where independent, 1 where identical
    correlation   Pearson correlation of equal dimensions          mean |r|, 0 to 1; linear only
    cka           likeness of two representations up to rotation   0 to 1; linear only
    leakage       how well a probe tells the domain                accuracy, beside that of the majority

`report` puts them together for the two sides of an ICLM. What each is good for, and where it fails, is measured on
distributions of known mutual information by `iclm.studies.estimators`. The losses are in `iclm.model.independence`.
"""

from iclm.evaluation.independence.cka import linear_cka
from iclm.evaluation.independence.correlation import CorrelationReport, correlation_report
from iclm.evaluation.independence.hsic import HSICReport, hsic_test
from iclm.evaluation.independence.ksg import (
    MutualInformationReport,
    ksg_mutual_information,
    mutual_information_report,
)
from iclm.evaluation.independence.leakage import LeakageReport, domain_leakage
from iclm.evaluation.independence.report import independence_report

__all__ = [
    "CorrelationReport",
    "HSICReport",
    "LeakageReport",
    "MutualInformationReport",
    "correlation_report",
    "domain_leakage",
    "hsic_test",
    "independence_report",
    "ksg_mutual_information",
    "linear_cka",
    "mutual_information_report",
]
