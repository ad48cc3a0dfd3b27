"""What is removed from documents before they are encoded."""
