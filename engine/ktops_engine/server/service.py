"""What every route shares: the configuration, the engine's handle, the model's template."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from pydantic import BaseModel

from ktops_engine.server.chat_template import ChatTemplate
from ktops_engine.server.config import ServerConfig
from ktops_engine.server.errors import ApiError, bad_request
from ktops_engine.server.handle import Engine, ModelHandle
from ktops_engine.server.messages import normalise_messages
from ktops_engine.server.metrics import Metrics

MAX_LOGGED_FIELDS = 100

logger = logging.getLogger(__name__)


class Service:
    """One server's state beside the engine. Used on the event loop."""

    def __init__(self, handle: ModelHandle, config: ServerConfig) -> None:
        self.handle = handle
        self.config = config
        self.metrics = Metrics(handle, config)
        self.created = int(time.time())
        self._template: tuple[Engine, ChatTemplate] | None = None
        self._unknown_fields: set[str] = set()

    def check_model(self, model: str | None) -> None:
        """Raises ApiError 404 unless `model` is ours or was left out."""
        if model and model != self.config.model_id:
            raise self.model_not_found(model)

    def model_not_found(self, model: str) -> ApiError:
        return ApiError(
            404,
            f"The model {model[:200]!r} does not exist here; this server serves "
            f"{self.config.model_id!r}.",
            code="model_not_found",
            param="model",
        )

    def note_unknown_fields(self, body: BaseModel) -> None:
        """Log each field that is ignored, the first time it is seen."""
        for name in sorted((body.model_extra or {}).keys() - self._unknown_fields):
            if len(self._unknown_fields) < MAX_LOGGED_FIELDS:
                self._unknown_fields.add(name[:80])
                logger.warning("ignored the unknown request field %r", name[:80])

    async def chat_prompt(
        self, engine: Engine, messages: object, variables: Mapping[str, object] | None
    ) -> tuple[str, list[int]]:
        """The rendered conversation and its token ids. Raises ApiError 400."""
        conversation = normalise_messages(messages)
        template = self._template_for(engine)

        def render_and_encode() -> tuple[str, list[int]]:
            text = template.render(conversation, variables or {})
            return text, engine.tokenizer.encode(text)  # the template writes the first token itself

        text, token_ids = await asyncio.to_thread(render_and_encode)
        if not token_ids:
            raise bad_request("The prompt has no tokens.", param="messages", code="empty_prompt")
        return text, token_ids

    def _template_for(self, engine: Engine) -> ChatTemplate:
        if self._template is None or self._template[0] is not engine:
            tokenizer = engine.tokenizer
            source = self.config.chat_template or tokenizer.chat_template
            template = ChatTemplate(source, tokenizer, max_chars=2 * self.config.max_body_bytes)
            self._template = engine, template
        return self._template[1]
