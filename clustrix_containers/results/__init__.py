"""Where outcomes live, and how they are verified before they are unpickled."""
