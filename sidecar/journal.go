package sidecar

import (
	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// journal writes audit records.
type journal struct {
	plugin   authz.Principal
	log      *zap.Logger
	audit    *audit.Log // nil before it is opened
	recorder authz.BatchRecorder
}
