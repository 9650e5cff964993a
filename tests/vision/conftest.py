"""A small trained classifier, made once a session, that the tests of commands share."""

from __future__ import annotations

import pytest
from made_images import telling_folder
from small_classifiers import small_training

from data_prep.images import ImagesConfig
from data_prep.images import main as prepare
from nmt_ls.experiment.engine import EngineConfig
from nmt_ls.experiment.run_directory import RunDirectory
from vision_ls.training import train


@pytest.fixture(scope="session")
def small_classifier(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run on a few embedded shapes: it has learnt little, but its files are those of any run."""
    outcome = train(small_training(tmp_path_factory.mktemp("classifiers") / "small"))
    assert outcome.summary is not None
    return outcome.run


@pytest.fixture(scope="session")
def telling_classifier(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run on prepared images, with something learnt and some doubt left."""
    place = tmp_path_factory.mktemp("telling")
    prepare(ImagesConfig(source=str(telling_folder(place / "made")), out=str(place / "images")))
    engine = EngineConfig(max_updates=60, validate_every=20, log_every=20, monitor="accuracy", average_last=0)
    outcome = train(small_training(place / "telling", data=str(place / "images"), engine=engine))
    assert outcome.summary is not None
    return outcome.run
