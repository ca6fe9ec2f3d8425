"""MobileGym's phone in the browser, through its own Python side (`bench_env`, from the user's checkout)."""
