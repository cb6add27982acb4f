"""Forecast the temperatures of the next seven days in Seattle, from real weather.

    python examples/weather/weather.py

The forecaster learns from the years 2012 to 2014, in PyTorch and in MindSpore, from the same weights and with the same
losses. Then it makes forecasts for 2015 day by day, in every framework. The exit status is 1 if losses or forecasts
differ between frameworks, or if the error is not at least a tenth below that of two naive forecasts. Frameworks that
are not installed are left out.
"""

import argparse
import csv
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from forecaster import MODEL
from numpy.typing import NDArray

import unirnn
from unirnn import registry
from unirnn.errors import MissingBackendError

__all__ = ["Weather", "main", "train"]

LEARNING, ALL = ("torch", "mindspore"), ("torch", "mindspore", "numpy", "onnxruntime")
DAYS, YEAR = 7, 365  # how many days are forecast
BATCH_SIZE, STEPS, BATCHES, RATE = 32, 64, 60, 0.005
MARGIN = 0.9  # of the error of the better baseline
TOLERANCE = 1e-3  # of a loss, and degrees of a forecast

Array = NDArray[Any]


class Weather:
    """Four years of daily weather in Seattle, 2012 to 2015, from the package ``vega_datasets``.

    The data are NOAA's, in the public domain. Only the file is read; the package is not imported.

    Attributes
    ----------
    highest
        `(days,)`: the highest temperature of each day, in degrees Celsius.
    features
        `(days, 6)` float32: highest and lowest temperature, rain, wind, and the season as two numbers; scaled to mean
        0 and deviation 1 over the years to learn from.
    first
        The first day of 2015.
    """

    def __init__(self) -> None:
        path = metadata.distribution("vega_datasets").locate_file("vega_datasets/_data/seattle-weather.csv")
        with open(Path(str(path)), encoding="utf-8") as file:
            days = list(csv.DictReader(file))
        self.first = next(n for n, day in enumerate(days) if day["date"].startswith("2015"))
        self.highest, lowest, rain, wind = (
            np.array([float(day[name]) for day in days]) for name in ("temp_max", "temp_min", "precipitation", "wind")
        )
        season = 2 * np.pi * np.arange(len(days)) / 365.25
        features = np.stack([self.highest, lowest, np.log1p(rain), wind, np.sin(season), np.cos(season)], axis=1)
        self._mean, self._deviation = features[: self.first].mean(axis=0), features[: self.first].std(axis=0)
        self.features = ((features - self._mean) / self._deviation).astype(np.float32)

    def degrees(self, scaled: Array) -> Array:
        """Convert temperatures from the scale of `features` to degrees."""
        return scaled * self._deviation[0] + self._mean[0]  # type: ignore[no-any-return]

    def batches(self, seed: int) -> Iterator[tuple[Array, Array]]:
        """Yield weather `(B, T, 6)` to learn from, and the temperatures `(B, T, 7)` of the days after each day."""
        random = np.random.default_rng(seed)
        for _ in range(BATCHES):
            begins = random.integers(self.first - DAYS - STEPS, size=BATCH_SIZE)
            days = begins[:, None] + np.arange(STEPS)
            yield self.features[days], self.features[days[:, :, None] + np.arange(1, DAYS + 1), 0]

    def errors(self, forecasts: Array) -> Array:
        """The mean absolute error, in degrees, for one to seven days ahead.

        Parameters
        ----------
        forecasts
            `(n, 7)`, one made on each day from the last of 2014 to the last with seven known days after it.
        """
        later = np.lib.stride_tricks.sliding_window_view(self.highest[self.first :], DAYS)
        return np.abs(forecasts - later).mean(axis=0)  # type: ignore[no-any-return]


def train(backend: str, weather: Weather, seed: int) -> tuple[unirnn.Snapshot, Array]:
    """Train in one framework; also return the loss of each batch."""
    loop = importlib.import_module(f"fit_{backend}")
    net = MODEL.build(backend, seed=seed)
    losses = np.array(list(loop.fit(net, weather.batches(seed), RATE)))
    return unirnn.snapshot(net), losses


def forecast(trained: unirnn.Snapshot, backend: str, weather: Weather) -> Array:
    """Make forecasts in degrees, `(n, 7)`, as `Weather.errors` takes them.

    The model reads all days before the first forecast in one call, and the others day by day.
    """
    net, framework = trained.build(backend), registry.load(backend)
    features = framework.from_numpy(weather.features[None], net)
    _, state = net(features[:, : weather.first - 1], return_state=True)
    forecasts = []
    for day in range(weather.first - 1, len(weather.highest) - DAYS):
        y, state = net.step(features[:, day], state)
        forecasts.append(framework.to_numpy(y)[0])
    return weather.degrees(np.stack(forecasts))


def installed(names: Sequence[str]) -> list[str]:
    """Leave out those that are not installed; print which, and how to install them."""
    os.environ.setdefault("GLOG_v", "3")  # MindSpore warns at length of each kind of device that this machine lacks
    found = []
    for name in names:
        try:
            registry.load(name)
            found.append(name)
        except MissingBackendError as error:
            print(f"Left out: {name}. {error}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, forecast, compare, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=LEARNING, help="learn in this one only")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the batches (default 0)")
    options = parser.parse_args(arguments)
    weather = Weather()

    print(f"Losses while learning from {weather.first} days")
    learned, curves = {}, []
    for backend in installed([options.backend] if options.backend else LEARNING):
        learned[backend], losses = train(backend, weather, options.seed)
        curves.append([part.mean() for part in np.array_split(losses, 5)])
        print(f"{backend:18}", *(f"{loss:9.6f}" for loss in curves[-1]))

    made_on = np.arange(weather.first - 1, len(weather.highest) - DAYS)
    last_year = weather.highest[made_on[:, None] + np.arange(1, DAYS + 1) - YEAR]
    today = np.repeat(weather.highest[made_on, None], DAYS, axis=1)
    # The model that was trained in one framework makes forecasts in each of them.
    forecasts = {
        f"{source}, in {backend}": forecast(trained, backend, weather)
        for source, trained in learned.items()
        for backend in installed(ALL)
    }

    print("\nMean absolute errors of the forecasts in 2015, in degrees Celsius")
    print(f"{'days ahead':25}", *(f"{day:7}" for day in range(1, DAYS + 1)), "    all")
    rows = {"as a year before": last_year, "as today": today, **forecasts}
    means = {}
    for name, made in rows.items():
        errors = weather.errors(made)
        means[name] = errors.mean()
        print(f"{name:25}", *(f"{error:7.4f}" for error in [*errors, means[name]]))

    first, *others = forecasts.values()
    bar = MARGIN * min(means["as a year before"], means["as today"])
    checks = {
        f"the error is {weather.errors(first).mean():.2f}, expected {bar:.2f}": weather.errors(first).mean() <= bar,
        "the losses differ": np.allclose(curves, curves[0], rtol=TOLERANCE),
        "the forecasts differ": all(np.allclose(made, first, rtol=0, atol=TOLERANCE) for made in others),
    }
    wrong = [complaint for complaint, passed in checks.items() if not passed]
    for complaint in wrong:
        print(f"Failed: {complaint}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
