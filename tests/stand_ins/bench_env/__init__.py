"""In the place of MobileGym's `bench_env`: the names, arguments and results that `env=mobilegym` uses, as they read in
MobileGym's sources in November 2026, over a page with one button and one field. Written for these tests."""
