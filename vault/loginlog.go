package vault

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

const (
	loginLogInterval       = time.Minute     // between two lines about one cause
	loginLogChangeInterval = 5 * time.Second // between two lines about different ones
)

// loginLog is what was logged of failed logins.
type loginLog struct {
	cause      string
	at         dualTime
	suppressed int // failures since, of which no line was written
}

// logLogin logs a failed login or renewal: the first, another cause, and otherwise
// one line a minute with how many there were. The caller holds mu.
func (a *authenticator) logLogin(err error, now dualTime) {
	last := &a.loginLog
	quiet := loginLogInterval
	if err.Error() != last.cause {
		quiet = loginLogChangeInterval
	}
	if last.cause != "" && now.before(last.at.add(quiet)) {
		last.suppressed++
		return
	}
	fields := []zap.Field{zap.Error(err)}
	if last.suppressed > 0 {
		fields = append(fields, zap.Int("failures_before", last.suppressed))
	}
	a.cfg.outbox.warn("vault login failed", fields...)
	*last = loginLog{cause: err.Error(), at: now}
}

// Permanent reports whether an error of [Broker.Login] stays until an operator acts: a file
// of the login is missing or holds no secret, Vault refuses it, or what answers is no
// Vault. It is false where Vault does not answer or is sealed.
func Permanent(err error) bool {
	return err != nil && !isTransient(err) && !errors.Is(err, errStopping) && !errors.Is(err, context.Canceled) &&
		!errors.Is(err, context.DeadlineExceeded)
}
