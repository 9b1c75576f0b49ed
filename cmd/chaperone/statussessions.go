package main

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// maxSessionRows is how many sessions the table of status shows; --output json has all.
const maxSessionRows = 20

// sessionRows shows the open sessions with databases.
func sessionRows(w io.Writer, all []admin.Session, now time.Time) {
	for _, s := range all[:min(len(all), maxSessionRows)] {
		row(w, "session", sessionText(s, now))
	}
	if more := len(all) - maxSessionRows; more > 0 {
		row(w, "", phrase.Count(more, "more session")+" (all with --output json)")
	}
}

// sessionText describes a session on one line.
func sessionText(s admin.Session, now time.Time) string {
	state := fmt.Sprintf("idle %s", (time.Duration(s.IdleMS) * time.Millisecond).Round(time.Second))
	if s.Running > 0 {
		state = "runs " + phrase.Count(s.Running, "statement") + " (decision " + s.Statement + ")"
	}
	text := fmt.Sprintf("%s://%s/%s by %s", s.Protocol, net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port))), printable.Text(s.Database), s.Rule)
	if s.Credential != "" {
		text += ", credential " + s.Credential
	}
	if s.PID != 0 {
		text += fmt.Sprintf(", process %d", s.PID)
	}
	return fmt.Sprintf("%s, open %s, %s, sent %s, received %s (decision %s)", text, now.Sub(s.Since).Round(time.Second), state,
		humanSize(uint64(max(0, s.SentBytes))), humanSize(uint64(max(0, s.Bytes))), s.Decision)
}
