"""Every rendered manifest is what each version of Kubernetes says such an object is, strictly."""

from __future__ import annotations

import copy
import functools
from typing import Any

import kubernetes_validate.utils as schemas
import pytest
import yaml

import matrix
from conftest import Cell
from controller import ROOT

# Kinds of other projects, which Kubernetes' own schemas do not know: their fields are below.
FOREIGN = {"ScaledObject", "Gateway", "HTTPRoute"}


@pytest.fixture(scope="module", autouse=True)
def read_each_schema_once() -> None:
    """It reads its 3 MB of definitions for every object anew."""
    read = functools.cache(schemas.schema_contents)
    schemas.schema_contents = read


@pytest.fixture(scope="module")
def distinct(cells: dict[str, Cell]) -> dict[str, dict[str, Any]]:
    """Text to manifest: most cells share most of them."""
    return {
        text: cell.manifests[name]
        for cell in cells.values()
        for name, text in cell.texts.items()
        if cell.manifests[name]["kind"] not in FOREIGN
    }


def test_every_template_is_rendered_by_some_cell(cells: dict[str, Cell]) -> None:
    templates = {
        path.name.removesuffix(".yaml.j2")
        for path in (ROOT / "roles/t2v_deploy/templates").glob("*.yaml.j2")
    }
    assert {name for cell in cells.values() for name in cell.texts} == templates


@pytest.mark.parametrize("version", matrix.VERSIONS)
def test_valid(version: str, distinct: dict[str, dict[str, Any]]) -> None:
    assert len(distinct) > 50
    for manifest in distinct.values():
        used = schemas.validate(manifest, version, strict=True)
        assert used == version


def test_newest_is_the_newest_that_the_schemas_know() -> None:
    assert schemas.major_minor(schemas.latest_version()) == (matrix.VERSIONS[-1])
    faults = (ROOT / "roles/t2v_deploy/vars/main/faults.yml").read_text()
    assert f"_t2v_deploy_newest: {matrix.VERSIONS[-1].split('.')[1]}\n" in faults


def test_a_field_too_many_is_refused(documented: Cell) -> None:
    """The validation is strict: a typo is no unknown field that is passed over."""
    manifest = copy.deepcopy(documented.manifests["deployment-wan22"])
    manifest["spec"]["template"]["spec"]["terminationGracePeriod"] = 30
    with pytest.raises(schemas.ValidationError):
        schemas.validate(manifest, "1.28", strict=True)


def test_manifests_do_not_depend_on_the_version(cells: dict[str, Cell]) -> None:
    """So validating all of them against each version is what a site of that version gets."""
    for version in matrix.VERSIONS:
        assert cells[f"documented-{version}"].texts == cells["documented"].texts


def test_one_object_a_file(cell: Cell) -> None:
    for text in cell.texts.values():
        assert len(list(yaml.safe_load_all(text))) == 1


def test_objects_are_in_the_namespace_or_in_none(cell: Cell) -> None:
    for manifest in cell.manifests.values():
        wanted = None if manifest["kind"] in {"Namespace", "PersistentVolume"} else "t2v"
        assert manifest["metadata"].get("namespace") == wanted


def test_the_fields_of_keda_and_gateway_api_are_theirs(cells: dict[str, Cell]) -> None:
    """Their schemas come with their controllers; these are the fields that we use of them."""
    scaled = cells["keda"].manifests["scaledobject-wan22"]
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    assert set(scaled["spec"]) == {
        "scaleTargetRef", "pollingInterval", "cooldownPeriod", "minReplicaCount",
        "maxReplicaCount", "fallback", "advanced", "triggers",
    }  # fmt: skip
    gateway = cells["gateway"].manifests["gateway-wan22"]
    route = cells["gateway"].manifests["httproute-wan22"]
    assert gateway["apiVersion"] == route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert set(gateway["spec"]) == {"gatewayClassName", "listeners"}
    assert set(route["spec"]) == {"parentRefs", "hostnames", "rules"}
    assert set(route["spec"]["rules"][0]) == {"matches", "timeouts", "backendRefs"}
