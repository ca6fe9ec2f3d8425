"""A phone of 100 x 200 CSS pixels in the browser."""

from typing import Any

from bench_env.env.base import Action, ActionType, Observation, StepResult

SIZE = (100, 200)


class MobileGymEnv:
    def __init__(self, *, url: str, browser: Any, delay_after_action: float = 0.8, verbose: bool = True) -> None:
        self.url = url
        self.browser = browser
        self.heard: list[Action] = []

    @staticmethod
    def get_launch_args(headless: bool, **_: Any) -> dict[str, Any]:
        return {"headless": headless, "args": ["--ignore-certificate-errors"]}

    async def start(self) -> "MobileGymEnv":
        self.page = await self.browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        return self

    async def reset(self, app_ids: list[str] | None = None) -> None:
        await self.page.goto(self.url)

    async def step(self, action: Action) -> StepResult:
        self.heard.append(action)
        if action.action_type is ActionType.CLICK:
            x, y = action.data["point"]
            await self.page.mouse.click(x / 1000 * SIZE[0], y / 1000 * SIZE[1])
        elif action.action_type is ActionType.TYPE:
            await self.page.fill("input", action.data["value"])
        return StepResult(await self.get_observation())

    async def get_observation(self) -> Observation:
        picture = await self.page.screenshot(type="jpeg", quality=80)
        return Observation(screenshot_bytes=picture, state=await self.get_state())

    async def get_state(self, *, required_apps: list[str] | None = None) -> dict[str, Any]:
        state: dict[str, Any] = await self.page.evaluate("window.state()")
        return state

    async def close(self) -> None:
        await self.page.close()
