"""The dashboard in a real browser: Chromium of Debian, driven by Playwright."""
