"""Android phones and emulators over adb (`adbutils`, which is imported nowhere else)."""
