package extauthz

import (
	"cmp"
	"context"
	"errors"
	"strings"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	logv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/chaperone-proxy/chaperone/authz"
)

// methodAccessLogs is the one method of envoy.service.accesslog.v3.AccessLogService.
const methodAccessLogs = logv3.AccessLogService_StreamAccessLogs_FullMethodName

// Details of Envoy's answers, as %RESPONSE_CODE_DETAILS% has them, that are not
// answers of Envoy's own.
const (
	detailsUpstream = "via_upstream"     // the upstream answered
	detailsDenied   = "ext_authz_denied" // the sidecar did
	detailsUpgrade  = "upgrade_failed"   // no rule at all may upgrade to this
)

// accessLogs is Envoy's access log service. What Envoy answers by itself, before
// the sidecar was asked or after it allowed, is known from nothing else.
type accessLogs struct {
	logv3.UnimplementedAccessLogServiceServer

	server *Server
}

// StreamAccessLogs records the answers that Envoy gave by itself, until the caller
// or the server ends.
func (a accessLogs) StreamAccessLogs(stream logv3.AccessLogService_StreamAccessLogsServer) error {
	if p, ok := peer.FromContext(stream.Context()); !ok || !trusted(p.AuthInfo) {
		// Anybody could fill the audit log.
		return status.Error(codes.PermissionDenied, "access logs are taken over the unix socket or under mutual TLS only")
	}
	done := make(chan error, 1)
	go func() { // ends with the stream, which ends with this call
		for {
			in, err := stream.Recv()
			if err != nil {
				done <- err
				return
			}
			for _, entry := range in.GetHttpLogs().GetLogEntry() {
				a.server.recordEnvoyAnswer(entry)
			}
		}
	}()
	select {
	case <-a.server.health.draining:
		return status.Error(codes.Unavailable, "the sidecar ends")
	case err := <-done:
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
}

// recordEnvoyAnswer records an answer of Envoy's own.
func (s *Server) recordEnvoyAnswer(entry *datav3.HTTPAccessLogEntry) {
	code, details := entry.GetResponse().GetResponseCode().GetValue(), entry.GetResponse().GetResponseCodeDetails()
	flags := entry.GetCommonProperties().GetResponseFlags()
	if details == detailsUpstream || details == detailsDenied || code < 400 && !(code == 0 && flags.GetDownstreamProtocolError()) {
		return
	}
	facts := entry.GetCommonProperties().GetMetadata().GetFilterMetadata()[filterHTTPAuthz].GetFields()
	decision := facts["decision"].GetStringValue()
	request := entry.GetRequest()
	path, _, _ := strings.Cut(request.GetPath(), "?")
	detail := "Envoy answered by itself: " + withoutQuoted(details)
	if code == 0 {
		detail = "Envoy reset the stream: " + withoutQuoted(details)
	}
	attempt := authz.Attempt{
		Principal: s.cfg.Plugin, Detail: detail, Method: methodOf(request),
		URL: cmp.Or(request.GetScheme(), string(authz.SchemeHTTP)) + "://" + request.GetAuthority() + path,
	}
	if attempt.Method == "CONNECT" {
		attempt.Method, attempt.Connect = "", true
	}
	refusal, err := s.cfg.Gate.RecordAnswer(decision, answerReason(code, details, flags), attempt, authz.Source{Door: authz.DoorExtAuthz, UID: -1})
	if err != nil {
		s.log.Warn("answer of Envoy not recorded", zap.Error(err))
	}
	if s.cfg.Refused != nil {
		s.cfg.Refused(refusal)
	}
}

// answerReason returns the reason that the sidecar's own proxy gives for what
// Envoy answers with a status and flags (%RESPONSE_FLAGS%).
func answerReason(code uint32, details string, f *datav3.ResponseFlags) authz.Reason {
	switch {
	case details == detailsUpgrade:
		return authz.MethodNotGranted
	case f.GetUpstreamRequestTimeout(), f.GetStreamIdleTimeout(), f.GetDurationTimeout(), f.GetUpstreamMaxStreamDurationReached(), code == 504:
		return authz.UpstreamTimeout
	case f.GetUpstreamConnectionFailure(), f.GetUpstreamConnectionTermination(), f.GetUpstreamRemoteReset(), f.GetLocalReset(),
		f.GetUpstreamProtocolError(), f.GetUpstreamRetryLimitExceeded(), code == 502:
		return authz.UpstreamUnreachable
	case code == 403:
		return authz.NotEnforceableHere
	case code < 500, code == 501: // without an answer, too
		return authz.MalformedRequest
	}
	return authz.NotReady // it was not asked, or there is no route of what was allowed yet
}

// methodOf returns the request's method, "" for one that Envoy has no name for.
func methodOf(r *datav3.HTTPRequestProperties) string {
	switch name := r.GetRequestMethod().String(); name {
	case "METHOD_UNSPECIFIED":
		return ""
	default:
		return name
	}
}

// withoutQuoted returns Envoy's details without what an upstream or a plugin may have
// written in them, which stands in braces.
func withoutQuoted(details string) string {
	details, _, _ = strings.Cut(details, "{")
	word := strings.Map(func(r rune) rune {
		if r == '_' || r == '.' || r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, details)
	return cmp.Or(word[:min(len(word), maxDetails)], "no details")
}

const maxDetails = 120
