"""The types that all packages share: frozen values that know nothing but themselves."""
