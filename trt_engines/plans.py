"""Plans on the disk: signed, and checked before TensorRT may load one.

A plan is a program for the GPU, and TensorRT reads it without suspicion: who can change one can run
code here. So a plan lies in a folder that only its owner may write to, beside a signed page that
says what it is (`<name>.plan.manifest`: a line with an HMAC-SHA256, then JSON), and is loaded only
if the signature, the plan's digest, TensorRT's version and the GPU are right (decision 42).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from models import one_line, whole_file
from trt_engines.builder import messages_of
from trt_engines.errors import EngineError, EngineMismatchError
from trt_engines.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trt_engines.builder import Flavour

KEY_VARIABLE: Final = "FACEWARDEN_ENGINE_KEY"
KEY_FILE_VARIABLE: Final = "FACEWARDEN_ENGINE_KEY_FILE"
SUFFIX: Final = ".plan.manifest"
_SHORTEST_KEY: Final = 32  # bytes, as long as the digest
_SCHEME: Final = "hmac-sha256"
_SIGNED_AS: Final = b"facewarden plan 1\n"  # so that no other message signed with the key fits
_MAKE_KEY: Final = "make one with `(umask 077; openssl rand -hex 32 > FILE)`"


class PlanPage(BaseModel, frozen=True, extra="forbid"):
    """What is signed: the engine's manifest, and what its plans were built with and for."""

    schema_version: Literal[1] = 1
    engine: Manifest
    flavour: Literal["tensorrt", "tensorrt_rtx"]
    version: str = Field(description="Of TensorRT.")
    targets: tuple[str, ...] = Field(description="Compute capabilities, as SM89.")
    gpu: str | None = Field(description="Name of the only GPU it is for; None: of any target.")
    profile: dict[str, tuple[int, int, int]] = Field(
        description="Name of each dynamic axis -> least, usual and largest size."
    )
    plan: str = Field(description="File name beside this page.")
    plan_sha256: str
    key: str = Field(description="Digest of all that decides what the plan is.")
    refinement: tuple[str, str, str] | None = Field(
        None, description="File name, sha256 and key of the second graph's plan."
    )
    build_s: float = Field(description="Seconds that building took.")


def read_key(file: Path | None) -> bytes:
    """Return the key that signs plans.

    Args:
        file: that holds it; None: the environment says which, or holds the key itself.

    Raises:
        EngineError: there is none, it is short, or others may read the file.
    """
    if file is None and (named := os.environ.get(KEY_FILE_VARIABLE)):
        file = Path(named)
    if file is None:
        key = os.environ.get(KEY_VARIABLE, "").strip().encode()
        if not key:
            raise EngineError(
                "plans are signed, and there is no key: name its file with --key-file or "
                f"{KEY_FILE_VARIABLE}, or put it into {KEY_VARIABLE}; {_MAKE_KEY}"
            )
        where = KEY_VARIABLE
    else:
        try:
            mode = file.stat().st_mode
            key = file.read_bytes().strip()
        except OSError as error:
            raise EngineError(
                f"{file}: can't read the key ({error.strerror}); {_MAKE_KEY}"
            ) from error
        if mode & 0o077:
            raise EngineError(
                f"{file}: others may read or change the key (mode {stat.S_IMODE(mode):o}); "
                f"`chmod 600 {file}`, and make a new one if they are not to be trusted"
            )
        where = str(file)
    if len(key) < _SHORTEST_KEY:
        raise EngineError(
            f"{where}: expected a key of {_SHORTEST_KEY} bytes or more, found {len(key)}; "
            f"{_MAKE_KEY}"
        )
    return key


def private_folder(folder: Path) -> None:
    """Make a folder for plans, which nobody else can write to.

    Raises:
        EngineError: it can't be made, or is there and others may write to it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(f"{folder}: can't make the folder: {error.strerror}") from error
    _check_owner(folder)


def write_plans(
    folder: Path, page: PlanPage, plans: Mapping[str, bytes], signing_key: bytes
) -> Path:
    """Write plans and, last, their signed page; return the page's path.

    Plans have names of their own content: until the page is replaced, in one step, the old one
    holds, with the old plans.

    Args:
        folder: made by `private_folder`.
        page: names the plans.
        plans: file name -> content.
        signing_key: of `read_key`.

    Raises:
        EngineError: they can't be written.
    """
    path = folder / f"{page.engine.name}{SUFFIX}"
    content = page.model_dump_json(indent=2).encode() + b"\n"
    head = f"{_SCHEME} {_signature(content, signing_key)}\n".encode()
    try:
        for name, plan in plans.items():
            with whole_file(folder / name) as partial:
                partial.write_bytes(plan)
                partial.chmod(0o600)
        with whole_file(path) as partial:
            partial.write_bytes(head + content)
            partial.chmod(0o600)
    except OSError as error:
        raise EngineError(f"{folder}: can't write the plan: {error}") from error
    for old in folder.glob(f"{page.engine.name}.*.plan"):
        if old.name not in plans:
            old.unlink(missing_ok=True)
    return path


def read_page(path: Path, signing_key: bytes) -> PlanPage:
    """Return the signed page of a plan, before which nothing of it is believed.

    Raises:
        EngineError: it is missing, lies where others can write, or is no local file.
        EngineMismatchError: the signature is not ours.
    """
    _check_local(path)
    rebuild = _rebuild(path.name.removesuffix(SUFFIX))
    try:
        head, _, content = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise EngineError(
            f"{path}: can't read the plan's manifest ({error.strerror}); a plan is not loaded "
            f"without it: {rebuild}"
        ) from error
    _check_owner(path.parent)
    _check_owner(path)
    expected = f"{_SCHEME} {_signature(content, signing_key)}".encode()
    if not hmac.compare_digest(head, expected):
        raise EngineMismatchError(
            f"{path}: not signed with this key; it was changed, or built elsewhere: {rebuild}"
        )
    try:
        return PlanPage.model_validate_json(content)
    except ValidationError as error:
        raise EngineError(
            f"{path}: of another version of this software: {one_line(error, PlanPage)}; {rebuild}"
        ) from error


def read_plans(path: Path, signing_key: bytes, flavour: Flavour) -> tuple[PlanPage, list[bytes]]:
    """Return the plans that this TensorRT may load on this GPU: the first, and a second graph's.

    Args:
        path: of the signed page.
        signing_key: of `read_key`.
        flavour: which TensorRT is to load it, and the GPU as its only target.

    Raises:
        EngineError: see `read_page`; or a plan is missing.
        EngineMismatchError: see `read_page`; or a plan's content, TensorRT's version or the GPU is
            another one.
    """
    page = read_page(path, signing_key)
    rebuild = _rebuild(page.engine.name, page.engine.precision)
    if (page.flavour, page.version) != (flavour.name, flavour.version):
        raise EngineMismatchError(
            f"{path}: built by {page.flavour} {page.version}, found {flavour.name} "
            f"{flavour.version}; plans are for one version: {rebuild}"
        )
    foreign = set(flavour.targets) - set(page.targets)
    if foreign or page.gpu not in (None, flavour.gpu):
        raise EngineMismatchError(
            f"{path}: built for {page.gpu or ', '.join(page.targets)}, found "
            f"{flavour.gpu or ', '.join(flavour.targets)}: {rebuild}"
        )
    wanted = [(page.plan, page.plan_sha256)]
    if page.refinement is not None:
        wanted.append(page.refinement[:2])
    return page, [_plan(path.parent / name, sha256, rebuild) for name, sha256 in wanted]


def load_plan(flavour: Flavour, plan: bytes, name: str) -> Any:
    """Return the engine of a plan that `read_plans` gave, an `ICudaEngine`.

    Raises:
        EngineError: TensorRT refuses it.
    """
    trt = flavour.module
    messages = messages_of(trt)
    messages.errors.clear()
    runtime = trt.Runtime(messages)
    if runtime.engine_host_code_allowed:  # the default, which nobody may change
        raise EngineError(f"{name}: this TensorRT would run a plan's own code on the host")
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"{name}: TensorRT can't load the plan: {'; '.join(messages.errors)}; see "
            f"`python -m trt_engines doctor`, or {_rebuild(name)}"
        )
    return engine


def _plan(path: Path, sha256: str, rebuild: str) -> bytes:
    try:
        content = path.read_bytes()  # once: what is digested is what is loaded
    except OSError as error:
        raise EngineError(f"{path}: can't read the plan ({error.strerror}); {rebuild}") from error
    _check_owner(path)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise EngineMismatchError(
            f"{path}: expected sha256 {sha256[:12]}..., found {found[:12]}...; {rebuild}"
        )
    return content


def _check_local(path: Path) -> None:
    if ":/" in str(path):
        raise EngineError(
            f"{path}: a plan is a program, and is never loaded from elsewhere; build it here"
        )


def _check_owner(path: Path) -> None:
    """Refuse what others than its owner may write to, and what belongs to somebody else."""
    about = path.stat()
    if about.st_uid not in (os.geteuid(), 0):
        raise EngineError(
            f"{path}: belongs to user {about.st_uid}, expected {os.geteuid()} or root; whoever "
            f"owns a plan can run code here: `chown` it, or build into a folder of your own"
        )
    if about.st_mode & 0o022:
        raise EngineError(
            f"{path}: others may change it (mode {stat.S_IMODE(about.st_mode):o}), and with it "
            f"run code here: `chmod go-w {path}`, then build again"
        )


def _signature(content: bytes, signing_key: bytes) -> str:
    return hmac.new(signing_key, _SIGNED_AS + content, hashlib.sha256).hexdigest()


def _rebuild(name: str, precision: str | None = None) -> str:
    option = f" --precision {precision}" if precision else ""
    return f"rebuild it with `python -m trt_engines build --models {name}{option}`"
