package main

import "context"

func envoyScene(context.Context, *world) (*table, error) { return &table{}, nil }
