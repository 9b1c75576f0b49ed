package vault

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
)

// outboxConfig is what an outbox delivers to.
type outboxConfig struct {
	plugin   string
	recorder authz.Recorder // nil for none
	changed  func()         // nil is not called
	log      *zap.Logger
	now      func() time.Time
}

// outbox collects what the parts of a broker report while they hold their locks: audit
// records, log lines, and that a credential in use was lost. flush delivers it once the
// locks are released, so that a slow disk or terminal, or a callback, delays no request
// that needs a credential.
type outbox struct {
	cfg outboxConfig

	// delivering keeps the audit records in the order in which they were made. It
	// is taken before mu.
	delivering sync.Mutex

	mu       sync.Mutex
	records  []authz.Record
	warnings []warning
	lost     bool
}

type warning struct {
	text   string
	fields []zap.Field
}

// record adds a record for the audit log.
func (o *outbox) record(reason string, ref authz.CredentialRef, lease, detail string) {
	if o.cfg.recorder == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.records = append(o.records, authz.Record{
		Time: o.cfg.now(), Kind: authz.KindCredential, Plugin: o.cfg.plugin, Grant: ref.Grant,
		Credential: ref.Name, Lease: lease, Reason: reason, Detail: detail, UID: -1,
	})
}

// warn adds a log line for operators.
func (o *outbox) warn(text string, fields ...zap.Field) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.warnings = append(o.warnings, warning{text, fields})
}

// credentialLost has the callback called: a credential in use was lost.
func (o *outbox) credentialLost() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lost = true
}

// flush calls back, logs and audits what was added. The caller holds no lock: where
// a method changes a part, flush is deferred before that part's lock is taken.
func (o *outbox) flush() {
	o.mu.Lock()
	lost, pending, warnings := o.lost, len(o.records) > 0, o.warnings
	o.lost, o.warnings = false, nil
	o.mu.Unlock()
	if lost && o.cfg.changed != nil {
		o.cfg.changed()
	}
	for _, w := range warnings {
		o.cfg.log.Warn(w.text, w.fields...)
	}
	if pending {
		o.deliverRecords()
	}
}

// deliverRecords writes the records to the audit log, one caller at a time.
func (o *outbox) deliverRecords() {
	o.delivering.Lock()
	defer o.delivering.Unlock()
	o.mu.Lock()
	records := o.records
	o.records = nil
	o.mu.Unlock()
	for i := range records {
		if err := o.cfg.recorder.Record(&records[i]); err != nil {
			o.cfg.log.Error("credential audit record not written", zap.Error(err))
		}
	}
}
