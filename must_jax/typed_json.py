"""Whether JSON values are of a type, down to the numbers in their lists."""

import json
from typing import Any

import pydantic


def misfit(kind: Any, values: Any) -> str | None:
    """What is wrong in JSON values, and where; None where they are of the type.

    Args:
      kind: a type as annotations have it, its limits as pydantic's `Field`.
      values: as `json.loads` gives them.
    """
    try:
        # Names of files may hold bytes that are no text, which its JSON has no place for.
        text = json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")
        pydantic.TypeAdapter(kind).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return None
