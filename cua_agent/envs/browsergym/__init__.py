"""BrowserGym's tasks (MiniWoB++, WebArena, WorkArena and others) by their ids: pixels, coordinates, its rewards."""
