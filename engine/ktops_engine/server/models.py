"""GET /models and /models/{id}."""

from __future__ import annotations

from fastapi import APIRouter

from ktops_engine.server.service import Service


def models_router(service: Service) -> APIRouter:
    """The routes of the model list."""
    router = APIRouter()

    def card() -> dict[str, object]:
        config = service.config
        return {
            "id": config.model_id,
            "object": "model",
            "created": service.created,
            "owned_by": "ktops",
            "root": config.root or config.model_id,
            "max_model_len": service.handle.engine().max_model_len,
        }

    @router.get("/models")
    async def list_models() -> dict[str, object]:
        return {"object": "list", "data": [card()]}

    @router.get("/models/{model_id:path}")
    async def retrieve_model(model_id: str) -> dict[str, object]:
        if model_id != service.config.model_id:
            raise service.model_not_found(model_id)
        return card()

    return router
