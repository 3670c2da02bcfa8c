"""Ray actors over plain classes, a room for each concern; imports run loop -> training -> roles -> fleet -> engine."""
