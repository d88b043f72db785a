"""`heart`: does a patient have heart disease? Four hospitals, which differ in patients and in what they measure.

Switzerland measures no cholesterol, hardly anybody but Cleveland counts vessels (`ca`); from 36 % of a hospital's
patients to 93 % are ill. A gap is filled at the hospital, with the median or the most frequent value of its training
rows; what it never measures takes the value that is typical of people.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn, zeros

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.errors import TaskError
from llmos_stream.scenarios.site_task import SiteTask, Split, drawn, examples
from llmos_stream.scenarios.tables import Row, read_table
from llmos_stream.training.seeds import derive_seed

SITES = ("Cleveland", "Hungary", "VA Long Beach", "Switzerland")
_VALIDATION, _TEST = 0.1, 0.34  # as many test rows as FLamby holds out

_TYPICAL: Mapping[str, tuple[float, float]] = {
    "age": (54, 9),
    "trestbps": (132, 18),
    "chol": (240, 55),
    "thalch": (138, 26),
    "oldpeak": (0.9, 1.1),
    "ca": (0.7, 0.9),
}
"""What is typical of a patient and how much patients differ. Constants: no hospital may look at another's rows."""
_KINDS: Mapping[str, Sequence[str]] = {
    "sex": ("Male",),
    "fbs": ("True",),
    "exang": ("True",),
    "cp": ("typical angina", "atypical angina", "non-anginal", "asymptomatic"),
    "restecg": ("normal", "st-t abnormality", "lv hypertrophy"),
    "slope": ("upsloping", "flat", "downsloping"),
    "thal": ("normal", "fixed defect", "reversable defect"),
}
_SELDOM_MEASURED = ("slope", "ca", "thal")
_NOBODY_HAS_NONE = ("chol", "trestbps")
"""A 0 there is a gap."""


class Heart(SiteTask):
    """Logistic regression: 22 numbers a patient, 12 with the option `rows=complete`.

    That leaves `slope`, `ca` and `thal` out, and every patient of whom anything else is missing: the 740 rows that
    FLamby has (Ogier du Terrail et al. 2022). With `scaling=site` each hospital scales numbers by the mean and the
    spread of its own training rows, in place of constants that all agree on.
    """

    name = "heart"
    sites = SITES

    def __init__(self, task: TaskSettings, client: ClientSettings) -> None:
        super().__init__(task, client)
        rows, scaling = str(self.options.get("rows", "all")), str(self.options.get("scaling", "constants"))
        known = rows in ("all", "complete") and scaling in ("constants", "site")
        if not known or self.options.keys() - {"rows", "scaling"}:
            raise TaskError("task.options: rows=all or rows=complete; scaling=constants or scaling=site")
        self._complete, self._by_site = rows == "complete", scaling == "site"

    def model(self) -> nn.Module:
        return nn.Linear(len(self.example()), 2, dtype=torch.float32, device="cpu")

    def split(self, site: str) -> Split:
        return _split(site, self.settings.seed, complete=self._complete, by_site=self._by_site)

    def example(self) -> Tensor:
        columns = _columns(complete=self._complete)
        return zeros(sum(len(_KINDS.get(column, ("",))) for column in columns))


def _columns(*, complete: bool) -> list[str]:
    return [name for name in (*_TYPICAL, *_KINDS) if not complete or name not in _SELDOM_MEASURED]


@cache
def _split(site: str, seed: int, *, complete: bool, by_site: bool) -> Split:
    columns = _columns(complete=complete)
    rows = [row for row in read_table("heart") if row["site"] == site]
    if complete:
        rows = [row for row in rows if all(row[column] for column in columns)]
    ill = np.array([row["num"] != "0" for row in rows], np.int64)
    parts = drawn(ill, _VALIDATION, _TEST, derive_seed(seed, f"split of {site}"))
    inputs = np.concatenate([_features(rows, column, parts[0], by_site=by_site) for column in columns], axis=1)
    return Split(*(examples(inputs[part], ill[part]) for part in parts))


def _features(rows: Sequence[Row], column: str, known: NDArray[np.int64], *, by_site: bool) -> NDArray[np.float64]:
    """A column as numbers (N, K), its gaps filled with what the rows of `known` hold."""
    if column in _KINDS:
        values = np.array([row[column] for row in rows])
        told = [value for value in values[known] if value]
        usual = max(sorted(set(told)), key=told.count, default="")
        values = np.where(values == "", usual, values)
        return np.stack([values == kind for kind in _KINDS[column]], axis=1).astype(np.float64)
    mean, spread = _TYPICAL[column]
    numbers = np.array([float(row[column] or "nan") for row in rows])
    if column in _NOBODY_HAS_NONE:
        numbers[numbers == 0] = np.nan
    measured = numbers[known][~np.isnan(numbers[known])]
    filled = np.where(np.isnan(numbers), np.median(measured) if len(measured) else mean, numbers)
    if by_site and len(measured):
        mean, spread = float(filled[known].mean()), float(filled[known].std()) or 1.0
    return ((filled - mean) / spread)[:, None]
