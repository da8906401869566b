"""What follows from the role of a sentinel."""

from __future__ import annotations

import copy
import pickle

import pytest
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.sentinels.roles import EXPORT, PREDICT, TEST, TRAIN, VALIDATE

ROLES = [TRAIN, VALIDATE, TEST, PREDICT, EXPORT]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_keeps_what_it_means_when_it_travels(role):
    for twin in (pickle.loads(pickle.dumps(role)), copy.deepcopy(role)):
        assert twin == role
        assert (twin.trains, twin.repeats, twin.answers) == (role.trains, role.repeats, role.answers)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_its_name_to_users(role):
    assert type(str(role)) is str
    assert repr(role) == repr(str(role))


def test_only_training_trains_only_validation_repeats_and_what_is_asked_answers():
    assert [role for role in ROLES if role.trains] == [TRAIN]
    assert [role for role in ROLES if role.repeats] == [VALIDATE]
    assert [role for role in ROLES if role.answers] == [PREDICT, EXPORT]


def test_the_recipes_of_users_have_the_roles_of_their_names():
    made = {
        "train": ak.Sentinel.train([], cross_entropy),
        "validate": ak.Sentinel.validate([], cross_entropy),
        "test": ak.Sentinel.test([], cross_entropy),
        "predict": ak.Sentinel.predict([]),
    }
    assert {name: recipe.role for name, recipe in made.items()} == {name: name for name in made}
    assert "role='validate'" in repr(made["validate"])
