//go:build !race

package scenario

import (
	"context"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func build(ctx context.Context, path string) error { return testenv.BuildChaperone(ctx, path) }
