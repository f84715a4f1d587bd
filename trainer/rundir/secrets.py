"""Secrets, known by their names. They are kept out of the files of a run.

In the environment: the value of every variable named *_TOKEN, *_KEY, *PASSWORD*, *SECRET* and the like. In any text,
`${NAME}` replaces such a value. So a process that has the variable can put the value back. On a command line also: the
value of an option or a setting (`db.password=x`) with such a name, and the password in a URL. Nobody can put these
back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

HIDDEN = "<redacted>"
_SHORTEST = 6
"""A shorter value is not replaced: so few characters occur in texts by chance."""
_NAME = re.compile(r"(?:^|_)(?:TOKEN|KEY|APIKEY|CREDENTIALS?)$|PASSWORD|PASSWD|PASSPHRASE|SECRET")
_SURE = re.compile(r"PASSWORD|PASSWD|PASSPHRASE|SECRET|API_?KEY$|ACCESS_KEY$|PRIVATE_KEY$")
_OPTION = re.compile(r"\A--?([A-Za-z][A-Za-z0-9_.-]*)(?:=(.*))?\Z", re.DOTALL)
_SETTING = re.compile(r"\A\+{0,2}([A-Za-z][A-Za-z0-9_./@-]*)=(.*)\Z", re.DOTALL)
"""A word of Hydra's, OmegaConf's or env's: wandb.api_key=x, +db.password=x, HF_TOKEN=x."""
_USERINFO = re.compile(r"(?<=://)([^/\s:@]*):([^/\s@]+)(?=@)")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def is_secret(name: str) -> bool:
    """Whether a variable or option of that name holds a secret."""
    return _NAME.search(_plain(name)) is not None


def _plain(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def _looks_secret(name: str, value: str) -> bool:
    # `--pad-token <pad>` and `--sort-key length` are no secrets; `--hf-token hf_x7Qz` is one.
    if _SURE.search(_plain(name)):
        return bool(value)
    return is_secret(name) and len(value) >= 8 and bool(re.search(r"[0-9]", value)) and not re.search(r"\s", value)


class Redactor:
    """Knows the secrets of one environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        values = {v: k for k, v in environ.items() if is_secret(k) and len(v) >= _SHORTEST}
        # The longest first: one may be part of another.
        self._values = sorted(values.items(), key=lambda item: -len(item[0]))
        self._environ = environ

    def text(self, text: str) -> str:
        """`text` without the secrets in it."""
        for value, name in self._values:
            if value in text:
                text = text.replace(value, f"${{{name}}}")
        return _USERINFO.sub(rf"\1:{HIDDEN}", text)

    def json(self, line: bytes) -> bytes:
        """The same for JSON text, in which characters may be escaped."""
        for value, name in self._values:
            for form in {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}:
                if (raw := form.encode("utf-8", "surrogatepass")) in line:
                    line = line.replace(raw, f"${{{name}}}".encode())
        if b"://" in line and b"@" in line:
            line = _USERINFO.sub(rf"\1:{HIDDEN}", line.decode("utf-8", "surrogatepass")).encode(
                "utf-8", "surrogatepass"
            )
        return line

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The arguments of a command line, without the secrets in them."""
        shown: list[str] = []
        option = ""
        for argument in arguments:
            clean = self.text(argument)
            match = _OPTION.match(argument)
            setting = match or _SETTING.match(argument)
            if clean != argument:
                pass
            elif not match and option and _looks_secret(option, argument):
                clean = HIDDEN
            elif setting and setting[2] is not None and _looks_secret(setting[1], setting[2]):
                clean = argument[: setting.start(2)] + HIDDEN
            option = match[1] if match and match[2] is None else ""
            shown.append(clean)
        return shown

    def restore(self, argument: str) -> str:
        """`argument` as it was before text() or command(). KeyError names the variable that this environment lacks, or
        HIDDEN."""
        if HIDDEN in argument:
            raise KeyError(argument)

        def value(match: re.Match[str]) -> str:
            return self._environ[match[1]] if is_secret(match[1]) else match[0]

        return _REFERENCE.sub(value, argument)
