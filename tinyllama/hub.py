"""Getting a model from the Hugging Face Hub through huggingface_hub, which keeps its own cache and settings (HF_*)."""

from __future__ import annotations

from pathlib import Path

from ops.errors import FetchError, OptionError
from tinyllama.fetch import announce


def fetch_from_hub(address: str) -> Path:
    """The file of ``hf:OWNER/REPO/FILE.gguf`` in huggingface_hub's cache, downloaded if the cache lacks the newest.

    HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to huggingface_hub: without a network, or with
    HF_HUB_OFFLINE=1, the cached file is used. Its progress bar is drawn on stderr if that is a terminal.

    Raises:
        OptionError: not of that form.
        FetchError: huggingface_hub is not installed, no such repo or file, no network and not cached, no space.
    """
    owner, repo, file = _parts(address)
    try:
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.constants import ENDPOINT
    except ImportError as error:
        raise FetchError(f'{address} needs huggingface_hub: run `pip install "tinyllama[hub]"`') from error

    name = f"{owner}/{repo}"
    try:
        if not isinstance(try_to_load_from_cache(name, file), str):
            # Asked once, this fails at once; hf_hub_download would first try again for half a minute.
            size = get_hf_file_metadata(hf_hub_url(name, file)).size
            announce(f"fetching {file} ({(size or 0) / 1e6:.0f} MB) from {ENDPOINT}/{name} ...")
        return Path(hf_hub_download(name, file))
    except errors.GatedRepoError as error:
        raise FetchError(f"{name} is gated: accept its terms at {ENDPOINT}/{name}, then run `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise FetchError(
            f"{ENDPOINT} shows no repository {name}: check the spelling, or run `hf auth login` if it is private"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise FetchError(f"{name} has no file {file}: see {ENDPOINT}/{name}/tree/main for those it has") from error
    except errors.OfflineModeIsEnabled as error:
        raise FetchError(f"{address} is not in the cache and HF_HUB_OFFLINE is set: unset it and try again") from error
    except errors.HFValidationError as error:
        raise OptionError(f"{name} is not a name the Hugging Face Hub allows: give hf:OWNER/REPO/FILE.gguf") from error
    except Exception as error:  # huggingface_hub's HTTP library differs between its versions, and so do its errors
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FetchError(
            f"{address} could not be fetched from {ENDPOINT} ({reason}): check the network, and the room in HF_HOME"
        ) from error


def _parts(address: str) -> tuple[str, str, str]:
    """OWNER, REPO and FILE."""
    parts = address.removeprefix("hf:").split("/")
    if len(parts) < 3 or not {"", ".", ".."}.isdisjoint(parts):
        raise OptionError(f"{address} is no file on the Hugging Face Hub: give hf:OWNER/REPO/FILE.gguf")
    return parts[0], parts[1], "/".join(parts[2:])
