"""The sources of the cache's address, and that a password in it is never shown."""

import shutil
from pathlib import Path

import pytest

from deployments.settings import PROJECT, AppArgs, Cache, SettingsError, load_settings

ENV = "LLM_BACKEND_CACHE_URL"


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return shutil.copytree(PROJECT / "configs", tmp_path / "configs")


def write(configs: Path, old: str, new: str) -> None:
    path = configs / "backend.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def load(configs: Path) -> Cache:
    args = AppArgs(profile="cpu-demo", config_dir=str(configs), home="/home/x")
    return load_settings(args, has_gpu=False).cache


def url(cache: Cache) -> str | None:
    return cache.url.get_secret_value() if cache.url else None


def test_the_shipped_cache_is_in_memory_and_modest(configs: Path) -> None:
    """The cache is on by default and takes little memory."""
    cache = load(configs)
    assert url(cache) == "memory://"
    assert cache.max_bytes <= 2**26
    assert cache.timeout_s == 0.05
    assert not cache.seeded


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("memory://", "memory://"),
        ("disk://", "disk:///home/x/cache"),
        ("disk:///srv/answers", "disk:///srv/answers"),
        ("redis://cache.studio:6379/2", "redis://cache.studio:6379/2"),
        ("rediss://u:p@cache.studio", "rediss://u:p@cache.studio"),
        ("null", None),
    ],
)
def test_an_address_from_the_file_or_the_environment_is_used(
    configs: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str | None
) -> None:
    """A path that `disk://` omits is filled in."""
    monkeypatch.setenv(ENV, given)
    assert url(load(configs)) == expected
    monkeypatch.setenv(ENV, "")
    write(configs, '"memory://"', given if given == "null" else f'"{given}"')
    assert url(load(configs)) == expected


@pytest.mark.parametrize(
    "given",
    [
        "memcached://u:s3cret@host",
        "u:s3cret@host",
        "redis://",
        "redis://u:s3cret@host:port",
        "redis://u:s3cret@[host",
        "disk://s3cret/folder",
        "http://u:s3cret@host",
    ],
)
def test_a_wrong_address_is_refused_and_not_repeated(
    configs: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """The address may hold a password: the error names only the setting."""
    monkeypatch.setenv(ENV, given)
    with pytest.raises(SettingsError) as caught:
        load(configs)
    assert str(caught.value).startswith(ENV)
    assert "s3cret" not in str(caught.value)
    monkeypatch.delenv(ENV)
    write(configs, '"memory://"', f'"{given}"')
    with pytest.raises(SettingsError, match=r"backend.yaml: cache.url") as caught:
        load(configs)
    assert "s3cret" not in str(caught.value)


def test_a_value_limit_above_the_store_limit_is_refused(configs: Path) -> None:
    """A value of that size would never be kept."""
    write(configs, "max_bytes: 67108864", "max_bytes: 1000")
    with pytest.raises(SettingsError, match="max_value_bytes"):
        load(configs)


def test_no_representation_of_the_settings_holds_the_password(
    configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray logs the arguments of deployments."""
    monkeypatch.setenv(ENV, "redis://u:s3cret@host")
    cache = load(configs)
    assert "s3cret" not in repr(cache) + str(cache) + cache.model_dump_json()
