import subprocess

from toolkit.runs.provenance import collect, git_commit, installed_versions, utc_now


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, check=True)
    return done.stdout.decode().strip()


def test_versions_come_from_metadata_and_missing_packages_are_left_out():
    versions = installed_versions(("numpy", "no-such-package"))
    assert list(versions) == ["numpy"]


def test_the_commit_says_whether_files_were_changed(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("1")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "a.txt").write_text("2")
    assert git_commit(tmp_path) == commit + "+changes"


def test_no_repository_and_no_git_are_tolerated(tmp_path, monkeypatch):
    assert git_commit(tmp_path / "nowhere") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert collect(["phinverse"], tmp_path).git_commit is None


def test_times_sort_as_text():
    first, second = utc_now(), utc_now()
    assert first <= second
    assert first.endswith("Z")
