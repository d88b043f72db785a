"""`lending`: will a loan go bad? One lender in each of 37 states of the USA; one loan in twenty does.

Texas has 900 loans, Hawaii 51, of which 3 went bad. The states with fewer than 50 loans take no part.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn, zeros

from llmos_stream.scenarios.scores import AveragePrecision, CalibrationError, RocAuc
from llmos_stream.scenarios.site_task import SiteTask, Split, drawn, examples
from llmos_stream.scenarios.tables import Row, read_table
from llmos_stream.training.metrics import Metric
from llmos_stream.training.seeds import derive_seed

_LEAST_LOANS = 50
_VALIDATION, _TEST = 0.15, 0.25
SITES = tuple(
    state
    for state, loans in sorted(Counter(row["state"] for row in read_table("lending")).items())
    if loans >= _LEAST_LOANS
)

_PLAIN: Mapping[str, tuple[float, float]] = {
    "int_rate": (13, 5),
    "delinq_2yrs": (0.3, 1),
    "inq_last_6mths": (0.6, 1),
    "revol_util": (50, 25),
    "open_il_6m": (3, 3),
    "open_il_12m": (0.7, 1),
    "open_il_24m": (1.6, 1.6),
    "all_util": (60, 20),
    "inq_fi": (1, 1.5),
    "inq_last_12m": (2, 2.5),
    "num_il_tl": (8, 7),
}
_LOGARITHMS: Mapping[str, tuple[float, float]] = {
    "funded_amnt": (9.5, 0.7),
    "annual_inc": (11, 0.6),
    "total_bal_il": (10, 2.5),
    "total_il_high_credit_limit": (10, 2.5),
}
"""Of log(1 + x). All these are round numbers that a lender knows; none is computed from another's loans."""
_GRADES = "ABCDEFG"
_CHECKED = ("Not_Verified", "Source_Verified", "Verified")
_FEATURES = len(_PLAIN) + len(_LOGARITHMS) + len(_CHECKED) + 6


class Lending(SiteTask):
    """Logistic regression on 24 numbers a loan."""

    name = "lending"
    sites = SITES

    def model(self) -> nn.Module:
        return nn.Linear(_FEATURES, 2, dtype=torch.float32, device="cpu")

    def split(self, site: str) -> Split:
        return _split(site, self.settings.seed)

    def metrics(self) -> Mapping[str, Metric]:
        return {"auc": RocAuc(), "average_precision": AveragePrecision(), "calibration_error": CalibrationError()}

    def example(self) -> Tensor:
        return zeros(_FEATURES)


@cache
def _split(site: str, seed: int) -> Split:
    rows = [row for row in read_table("lending") if row["state"] == site]
    bad = np.array([row["outcome"] == "bad" for row in rows], np.int64)
    parts = drawn(bad, _VALIDATION, _TEST, derive_seed(seed, f"split of {site}"))
    inputs = np.stack([_features(row) for row in rows])
    return Split(*(examples(inputs[part], bad[part]) for part in parts))


def _features(row: Row) -> NDArray[np.float64]:
    grade = 5 * _GRADES.index(row["sub_grade"][0]) + int(row["sub_grade"][1])
    years = row["emp_length"].removeprefix("emp_")
    worked = {"lt_1": 0.0, "ge_10": 10.0, "unk": 5.0}.get(years)
    return np.array(
        [
            *((float(row[name]) - mean) / spread for name, (mean, spread) in _PLAIN.items()),
            *((np.log1p(float(row[name])) - mean) / spread for name, (mean, spread) in _LOGARITHMS.items()),
            *(float(row["verification_status"] == kind) for kind in _CHECKED),
            (grade - 11) / 6,
            float(row["term"] == "term_60"),
            ((float(years) if worked is None else worked) - 6) / 4,
            float(years == "unk"),
            float(row["acc_now_delinq"] != "0"),
            float(row["delinq_amnt"] != "0"),
        ]
    )
