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

// methodAccessLogs is the only method of envoy.service.accesslog.v3.AccessLogService.
const methodAccessLogs = logv3.AccessLogService_StreamAccessLogs_FullMethodName

// Values of %RESPONSE_CODE_DETAILS% for answers that Envoy did not make by itself,
// and for a refused upgrade.
const (
	detailsUpstream = "via_upstream"     // the upstream answered
	detailsDenied   = "ext_authz_denied" // the sidecar answered
	detailsUpgrade  = "upgrade_failed"   // no rule allows this upgrade
)

// accessLogs is Envoy's access log service. It is the only source of the answers that
// Envoy makes by itself, before it asks the sidecar or after the sidecar allowed.
type accessLogs struct {
	logv3.UnimplementedAccessLogServiceServer

	server *Server
}

// StreamAccessLogs records the answers that Envoy made by itself, until the caller
// or the server ends.
func (a accessLogs) StreamAccessLogs(stream logv3.AccessLogService_StreamAccessLogsServer) error {
	if p, ok := peer.FromContext(stream.Context()); !ok || !trusted(p.AuthInfo) {
		// Otherwise any process could fill the audit log.
		return status.Error(codes.PermissionDenied, "access logs are accepted over the Unix socket or mutual TLS only")
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

// recordEnvoyAnswer records an answer that Envoy made by itself.
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
		s.log.Warn("envoy answer not recorded", zap.Error(err))
	}
	if s.cfg.Refused != nil {
		s.cfg.Refused(refusal)
	}
}

// answerReason returns the reason that the sidecar's own proxy reports for an answer
// of Envoy with this status and these flags (%RESPONSE_FLAGS%).
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
	case code < 500, code == 501: // including 0, no answer
		return authz.MalformedRequest
	}
	return authz.NotReady // the sidecar was not asked, or the allowed route is not configured yet
}

// methodOf returns the request's method, "" for one that Envoy does not name.
func methodOf(r *datav3.HTTPRequestProperties) string {
	switch name := r.GetRequestMethod().String(); name {
	case "METHOD_UNSPECIFIED":
		return ""
	default:
		return name
	}
}

// withoutQuoted returns Envoy's details without text that an upstream or a plugin may
// have written, which is in braces.
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
