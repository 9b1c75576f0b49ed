package postgres

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// SQLSTATE codes (PostgreSQL 18, appendix A).
const (
	stateProtocolViolation   = "08P01"
	stateConnectionFailure   = "08006"
	stateFeatureNotSupported = "0A000"
	stateInvalidAuth         = "28000"
	statePrivilege           = "42501"
	stateSyntaxError         = "42601"
	stateLimit               = "53400"
	stateProgramLimit        = "54000"
	stateAdminShutdown       = "57P01"
	stateCannotConnectNow    = "57P03"
	stateInvalidParameter    = "22023"
	stateInvalidCatalog      = "3D000"
)

// stateOf returns the SQLSTATE of a refusal.
func stateOf(reason authz.Reason) string {
	switch reason {
	case authz.MalformedRequest:
		return stateProtocolViolation
	case authz.UpstreamUnreachable, authz.UpstreamTimeout:
		return stateConnectionFailure
	case authz.CredentialUnavailable:
		return stateInvalidAuth
	case authz.NotReady:
		return stateCannotConnectNow
	case authz.QuotaExceeded:
		return stateLimit
	case authz.StatementTooLarge:
		return stateProgramLimit
	default:
		return statePrivilege
	}
}

const (
	severityError = "ERROR"
	severityFatal = "FATAL"
)

// errorMessage returns the ErrorResponse of a refusal. The decision is in its message,
// which many clients show alone.
func errorMessage(severity, state string, r *authz.Refusal) []byte {
	message := r.Reason.String()
	if r.Detail != "" {
		message += ": " + r.Detail
	}
	return appendError(severity, state, message+" (decision "+r.Decision+")", "reason "+r.Reason.String()+", decision "+r.Decision, r.Remedy)
}

// appendError encodes an ErrorResponse. Its texts are made printable.
func appendError(severity, state, message, detail, hint string) []byte {
	e := pgproto3.ErrorResponse{
		Severity: severity, SeverityUnlocalized: severity, Code: state,
		Message: printable.Text(message), Detail: printable.Text(detail), Hint: printable.Text(hint),
	}
	out, err := e.Encode(nil)
	if err != nil { // texts of that length do not occur
		return nil
	}
	return out
}

// marker makes the texts that stand in place of refused statements. Such a text is one
// identifier, with which no statement begins: the server answers a syntax error that
// quotes it, wherever the protocol has an error of the statement. It has the decision, and
// a random part that the plugin does not have. It fits into 63 bytes, beyond which the
// server would send a notice that it is cut.
type marker struct{ secret string }

const (
	markerPrefix = "chaperone_"
	decisionHex  = 32
	markerSecret = 20 // characters, of 5 bits each
)

func newMarker() marker { return marker{strings.ToLower(rand.Text())[:markerSecret]} }

// text returns the text that stands for a statement that a decision refused.
func (m marker) text(decision string) string {
	return markerPrefix + strings.ReplaceAll(decision, "-", "") + "_" + m.secret
}

// decision returns the decision whose text an ErrorResponse quotes, "" for any other error.
func (m marker) decision(frame []byte) string {
	i := bytes.Index(frame, []byte("_"+m.secret))
	start := i - decisionHex - len(markerPrefix)
	if start < 0 || !bytes.HasPrefix(frame[start:], []byte(markerPrefix)) || errorField(frame, 'C') != stateSyntaxError {
		return ""
	}
	id := string(frame[i-decisionHex : i])
	if _, err := hex.DecodeString(id); err != nil {
		return ""
	}
	return id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
}

// errorField returns a field of an ErrorResponse, "" without it.
func errorField(frame []byte, field byte) string {
	for rest := frame[headerSize:]; len(rest) > 1 && rest[0] != 0; {
		value, next, ok := bytes.Cut(rest[1:], []byte{0})
		if !ok {
			return ""
		}
		if rest[0] == field {
			return string(value)
		}
		rest = next
	}
	return ""
}

// queryMessage returns a Query.
func queryMessage(text string) []byte {
	out, err := (&pgproto3.Query{String: text}).Encode(nil)
	if err != nil {
		return nil
	}
	return out
}

// parseMessage returns a Parse without parameter types.
func parseMessage(name, text string) []byte {
	out, err := (&pgproto3.Parse{Name: name, Query: text}).Encode(nil)
	if err != nil {
		return nil
	}
	return out
}
