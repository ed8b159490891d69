//! One file a router: read weights and acceptance from an object, write the smallest patch. Pure.
