"""MiniWoB++ (Liu et al. 2018, arXiv:1802.08802) in real Chromium: pixel screenshots, pixel actions."""
