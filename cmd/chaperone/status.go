package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

func (c *cli) statusCommand() *cobra.Command {
	var watch bool
	cmd := c.withCurl(c.withOutput(c.withAdmin(&cobra.Command{
		Use: "status", Short: "Show the policy in force, and what each door enforces", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			show := func(ctx context.Context) error {
				s, err := ask(ctx, client, client.Status)
				if err != nil {
					return err
				}
				return c.print(s, func(w io.Writer) { statusTable(w, s, time.Now()) })
			}
			if watch {
				return c.live(cmd.Context(), time.Second, show)
			}
			return show(cmd.Context())
		},
	})))
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "refresh every second until interrupted")
	return cmd
}

func statusTable(w io.Writer, s admin.Status, now time.Time) {
	readinessRows(w, s, now)
	if p := s.Process; p != nil {
		processRows(w, p)
	}
	if s.Mediation != nil {
		mediationRows(w, s.Mediation)
	}
	for _, d := range s.Doors {
		row(w, "door "+d.Name, d.Address+" enforces "+phrase.List(d.Enforces))
		if len(d.NotEnforced) > 0 {
			row(w, "", "does not enforce "+phrase.List(d.NotEnforced))
		}
	}
	if s.Envoy != nil {
		envoyRows(w, s.Envoy, now)
	}
	policyRows(w, s)
	for _, cr := range s.Credentials {
		row(w, "credential", fmt.Sprintf("%s/%s %s %s", cr.Grant, cr.Name, cr.State, cr.Detail))
	}
	sessionRows(w, s.Sessions, now)
	row(w, "audit", strings.TrimSpace(fmt.Sprintf("%s, record %d %s", s.Audit.File, s.Audit.Seq, s.Audit.Detail)))
	if len(s.RestartPending) > 0 {
		row(w, "restart pending", phrase.List(s.RestartPending)+" (takes effect at a restart)")
	}
	if s.Certificates != "" {
		row(w, "certificates", s.Certificates)
	}
	for _, warning := range s.Warnings {
		row(w, "warning", warning)
	}
}

// readinessRows shows whether the sidecar is ready, and the kernel half.
func readinessRows(w io.Writer, s admin.Status, now time.Time) {
	ready := "ready"
	if !s.Ready {
		ready = "NOT READY"
	}
	row(w, "plugin", fmt.Sprintf("%s, %s, mode %s, generation %d, up %s", s.Plugin, ready, s.Mode, s.Generation, now.Sub(s.Started).Round(time.Second)))
	for _, check := range s.Checks {
		if !check.OK {
			row(w, "not ready", check.Name+": "+check.Detail)
		}
	}
	kernel := s.Kernel.Want
	if s.Kernel.Attached {
		kernel += ", attached"
	} else {
		kernel += ", NOT ATTACHED"
	}
	if s.Kernel.Detail != "" {
		kernel += ": " + s.Kernel.Detail
	}
	row(w, "kernel", kernel)
	if c := s.Kernel.Syscalls; c != nil {
		row(w, "", syscallCountingText(c))
	}
}

// syscallCountingText returns whether system calls are counted, and what that costs.
func syscallCountingText(c *admin.SyscallCounting) string {
	text := "system calls are counted one by one, which slows every process of the host down"
	if !c.Counted {
		text = "system calls are bounded by CPU time, since no limit on them is near; to count them slows every process of the host down"
	}
	if c.TraceCost > 0 {
		text += fmt.Sprintf(", by %v a call", c.TraceCost)
	}
	return text
}

// policyRows shows the grants, and the revocations in force.
func policyRows(w io.Writer, s admin.Status) {
	for _, g := range s.Grants {
		state := "until " + g.NotAfter.Format(time.RFC3339)
		if g.Expired {
			state = "EXPIRED " + g.NotAfter.Format(time.RFC3339)
		}
		row(w, "grant "+g.Name, state)
		signatureRows(w, g.Signature)
		for _, r := range g.Rules {
			note := r.Mode
			if r.Revoked {
				note = "REVOKED"
			}
			row(w, "  "+r.ID, note+": "+r.Reason)
		}
	}
	for _, r := range s.Revocations {
		what := "the whole plugin"
		if r.Rule != "" {
			what = phrase.Rule(r.Grant, r.Rule)
		}
		incident := ""
		if r.Incident != "" {
			incident = fmt.Sprintf(", incident %q", r.Incident)
		}
		if s.Host != nil && slices.Contains(s.Host.InForce, r.ID) {
			what += " (host-wide)"
		}
		row(w, "revoked", fmt.Sprintf("%s, %s by %s%s: %s (restore %s)", what, r.Level, r.Actor, incident, r.Reason, r.ID))
	}
	if s.Host != nil && s.Host.Detail != "" {
		row(w, "host", s.Host.Detail)
	}
}

// signatureRows shows what a signed grant is bound to.
func signatureRows(w io.Writer, s *admin.Signature) {
	if s == nil {
		return
	}
	row(w, "", fmt.Sprintf("signed, generation %d, risk %s (%d), approved by %s; renew before %s", s.Generation, s.Band, s.Score, phrase.List(s.Approvals), s.RenewBefore.UTC().Format(time.RFC3339)))
	row(w, "", "for "+s.Artifact)
	for _, e := range s.Exemptions {
		uses := strconv.FormatInt(e.Uses, 10)
		if e.MaxUses > 0 {
			uses += " of " + strconv.FormatInt(e.MaxUses, 10)
		}
		row(w, "", fmt.Sprintf("exemption %s from %s, %s, until %s, used %s", e.Name, e.From, e.State, e.NotAfter.UTC().Format(time.RFC3339), uses))
	}
}

func processRows(w io.Writer, p *admin.Process) {
	state := p.State
	if p.StoppedBy != "" {
		state += " by limit " + p.StoppedBy + " " + untilText(p.StoppedUntil)
	}
	row(w, "process", fmt.Sprintf("%s, pid %d, uid %d, network %s, %s", state, p.PID, p.UID, p.Network, p.Cgroup))
	for _, l := range p.Listen {
		how := "forwarded to it from the host"
		if !l.Forwarded {
			how = "bound by the plugin itself"
		}
		at := phrase.List(l.Addresses)
		if len(l.Addresses) == 0 {
			at = "unix:" + l.Path
		}
		row(w, "", fmt.Sprintf("serves on %s, %s; %d open", at, how, l.Open))
	}
}

func mediationRows(w io.Writer, m *admin.Mediation) {
	row(w, "mediation", fmt.Sprintf("%s admitted, %d handled, %d abandoned, %d pending, %d UNMEDIATED",
		phrase.Count(int(m.Admitted), "connection"), m.Handled, m.Abandoned, m.Pending, m.Unmediated))
	if m.Ended > 0 {
		row(w, "", fmt.Sprintf("%d processes or sockets were ended for leaving the confinement", m.Ended))
	}
	for _, one := range m.UnmediatedConnections {
		row(w, "unmediated", fmt.Sprintf("pid %d (%q) to %s, for %.0f s: %s", one.PID, one.Comm, one.Destination, one.AgeSeconds, one.Why))
	}
}

// untilText returns when a limit allows again.
func untilText(at time.Time) string {
	if at.IsZero() {
		return "permanently"
	}
	return "until " + at.Local().Format(time.TimeOnly)
}

func (c *cli) usageCommand() *cobra.Command {
	return c.withCurl(c.withOutput(c.withAdmin(&cobra.Command{
		Use: "usage", Short: "Show usage against limits, and what the kernel counted", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			u, err := ask(cmd.Context(), client, client.Usage)
			if err != nil {
				return err
			}
			return c.print(u, func(w io.Writer) { usageTable(w, u) })
		},
	})))
}

func usageTable(w io.Writer, u admin.Usage) {
	row(w, "LIMIT", "OF", "USED", "LEFT", "RATIO", "STATE")
	for _, l := range u.Limits {
		name := l.Grant
		if l.Rule != "" {
			name += "/" + l.Rule
		}
		row(w, name+" "+l.Kind, l.Limit, amount(l.Kind, l.Used), amount(l.Kind, l.Remaining), fmt.Sprintf("%.0f %%", 100*l.Ratio), limitStateText(l))
	}
	if u.Stale {
		row(w, "the kernel's counters are stale: accesses under byte and syscall limits are refused")
	}
	k := u.Counters
	if k == nil {
		row(w, "not counted by the kernel")
		return
	}
	row(w)
	row(w, "COUNTED", "")
	row(w, "bytes sent", humanSize(k.SentBytes))
	row(w, "bytes received", humanSize(k.ReceivedBytes))
	row(w, "connections", k.Connections)
	row(w, "refused by the kernel", k.RefusedConnections)
	row(w, "probes of libraries, refused", k.Probes)
	row(w, "refused by a limit", k.LimitedConnections)
	row(w, "queries to the resolver", k.DNSQueries)
	row(w, "processes", k.Processes)
	if k.Syscalls > 0 {
		row(w, "syscalls", syscallsText(k))
	}
}

// syscallsText returns the count of system calls, and how much of it is an upper bound.
func syscallsText(k *admin.Counters) string {
	if k.UncountedSyscalls == 0 {
		return strconv.FormatUint(k.Syscalls, 10)
	}
	return fmt.Sprintf("at most %d: %d counted, %d estimated from CPU time", k.Syscalls, k.Syscalls-k.UncountedSyscalls, k.UncountedSyscalls)
}

// limitStateText returns the state of a used-up limit. The end of a refusing rate is
// seldom known; a total never recovers.
func limitStateText(l admin.Limit) string {
	switch {
	case l.State == "":
		return ""
	case !l.Until.IsZero() || !strings.Contains(l.Limit, "/"):
		return l.State + " " + untilText(l.Until)
	}
	return l.State
}

// amount returns how much of a limit is used or left, bytes in units.
func amount(kind string, n uint64) string {
	if kind == authz.LimitSentBytes.String() || kind == authz.LimitReceivedBytes.String() {
		return humanSize(n)
	}
	return strconv.FormatUint(n, 10)
}

// humanSize returns bytes with the largest unit of which there is one whole, and
// one decimal where it is not whole, as in 1.8MiB.
func humanSize(n uint64) string {
	const unit = 1 << 10
	if n < unit {
		return strconv.FormatUint(n, 10) + "B"
	}
	value, suffix := float64(n)/unit, 0
	for value >= unit && suffix < len("KMGTPE")-1 {
		value, suffix = value/unit, suffix+1
	}
	text := strings.TrimSuffix(strconv.FormatFloat(math.Floor(value*10)/10, 'f', 1, 64), ".0")
	return text + "KMGTPE"[suffix:suffix+1] + "iB"
}

func (c *cli) topCommand() *cobra.Command {
	var interval time.Duration
	cmd := c.withAdmin(&cobra.Command{
		Use: "top", Short: "Show usage live", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			c.output = "table"
			return c.live(cmd.Context(), interval, func(ctx context.Context) error {
				u, err := ask(ctx, client, client.Usage)
				if err != nil {
					return err
				}
				return c.print(u, func(w io.Writer) {
					fmt.Fprintf(w, "chaperone top, %s; interrupt to end\n\n", u.At.Format(time.TimeOnly))
					usageTable(w, u)
				})
			})
		},
	})
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time between readings")
	return cmd
}

// isTerminal reports whether what is written to w is shown on a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func envoyRows(w io.Writer, e *admin.Envoy, now time.Time) {
	if len(e.Connected) == 0 {
		row(w, "envoy", "NOT CONNECTED to "+e.Dir+": requests are refused")
	}
	for _, one := range e.Connected {
		text := fmt.Sprintf("%s, connected for %s, generation %d", one.Version, now.Sub(one.Since).Round(time.Second), one.Generation)
		if !one.Current {
			text += fmt.Sprintf(", NOT YET %d", e.Generation)
		}
		row(w, "envoy", text)
		for _, kind := range slices.Sorted(maps.Keys(one.Refused)) {
			row(w, "", "REFUSED "+kind+": "+phrase.OneLine(one.Refused[kind]))
		}
	}
	row(w, "", fmt.Sprintf("%d egress sockets in %s", e.Exits, e.Dir))
	if e.Problem != "" {
		row(w, "", "NO ROUTES: "+phrase.OneLine(e.Problem))
	}
}
