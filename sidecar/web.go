package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/chaperone-proxy/chaperone/configs"
)

// webMetrics is the name of the listener that serves metrics.
const webMetrics = "metrics"

// web is one HTTP listener for those who watch the sidecar.
type web struct {
	name, address string
	server        *http.Server
	listener      net.Listener
}

// makeWeb makes the listeners for metrics and for health. The first serves both:
// a prober and a scraper may share it.
func (s *Sidecar) makeWeb(spec *configs.Sidecar) error {
	if !spec.Listen.Metrics.IsZero() {
		mux := s.healthMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
		s.listening.webs = append(s.listening.webs, newWeb(webMetrics, spec.Listen.Metrics.Addr, mux))
	}
	if !spec.Listen.Health.IsZero() {
		s.listening.webs = append(s.listening.webs, newWeb("health", spec.Listen.Health.Addr, s.healthMux()))
	}
	return nil
}

func (s *Sidecar) healthMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.serveReady)
	return mux
}

func newWeb(name, address string, handler http.Handler) *web {
	return &web{name: name, address: address, server: &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}}
}

// serveReady answers 200 when the sidecar is ready; ?verbose names each check.
func (s *Sidecar) serveReady(w http.ResponseWriter, r *http.Request) {
	status, body := http.StatusOK, ""
	for _, c := range s.checks() {
		mark := "[+]" + c.name + " ok"
		if c.err != nil {
			status, mark = http.StatusServiceUnavailable, "[-]"+c.name+" "+c.err.Error()
		}
		body += mark + "\n"
	}
	body += s.envoyLine()
	w.WriteHeader(status)
	switch {
	case r.URL.Query().Has("verbose"):
		fmt.Fprint(w, body)
	case status == http.StatusOK:
		fmt.Fprintln(w, "ok")
	default:
		fmt.Fprintln(w, "not ready")
	}
}

func (w *web) listen(ctx context.Context) (err error) {
	if w.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", w.address); err != nil {
		return fmt.Errorf("listen for %s: %w", w.name, err)
	}
	return nil
}

func (w *web) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = w.server.Shutdown(drain) // a scrape that does not end is cut by Close
		_ = w.server.Close()
	})
	defer stop()
	if err := w.server.Serve(w.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", w.name, err)
	}
	return nil
}
