package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

// The states of a sidecar of the host.
const (
	stateReady    = "ready"
	stateNotReady = "not ready"
	stateNoAnswer = "NO ANSWER"
	stateGone     = "GONE"
	stateRefused  = "refused"
)

// hostSidecar is a sidecar of the host, as sidecars prints it.
type hostSidecar struct {
	Plugin  string      `json:"plugin"`
	PID     int         `json:"pid"`
	State   string      `json:"state"`
	Mode    string      `json:"mode,omitempty"`
	Kernel  string      `json:"kernel,omitempty"`
	Process string      `json:"process,omitempty"` // state of the plugin's process
	Revoked authz.Level `json:"revoked,omitempty"` // of the whole plugin
	Partly  int         `json:"revokedRules,omitempty"`
	Socket  string      `json:"socket"`
	Config  string      `json:"config,omitempty"`
	Detail  string      `json:"detail,omitempty"`
}

func (c *cli) sidecarsCommand() *cobra.Command {
	return c.withOutput(&cobra.Command{
		Use: "sidecars", Aliases: []string{"list", "ls"}, Short: "List the sidecars of this host, including hanging and killed ones",
		Long: "List the sidecars of this host, including hanging (" + stateNoAnswer + ") and killed (" + stateGone + ") ones. A killed\n" +
			"one is listed until it is started again or chaperone detach has removed its state.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := listSidecars()
			if err != nil && len(all) == 0 {
				return err
			}
			rows := make([]hostSidecar, len(all))
			var asking sync.WaitGroup
			for i, s := range all {
				asking.Go(func() { rows[i] = describeSidecar(cmd.Context(), s) })
			}
			asking.Wait()
			if perr := c.print(rows, func(w io.Writer) { sidecarsTable(w, rows) }); perr != nil {
				return perr
			}
			return err // of some entries
		},
	})
}

// describeSidecar asks a sidecar for its state, and does not wait for one that hangs.
func describeSidecar(ctx context.Context, s admin.Sidecar) hostSidecar {
	out := hostSidecar{Plugin: s.Plugin, PID: s.PID, Socket: s.Socket, Config: s.Config, State: stateGone}
	if s.Gone {
		out.Detail = "killed; start it again, or run chaperone detach --plugin " + phrase.ShellWord(s.Plugin)
		return out
	}
	client := admin.Dial(s.Socket)
	status, err := ask(ctx, client, client.Status)
	if err != nil {
		out.State, out.Detail = stateRefused, phrase.OneLine(err.Error())
		if hung, ok := errors.AsType[*hungError](err); ok {
			out.State, out.PID = stateNoAnswer, cmp.Or(hung.pid, s.PID)
			out.Detail = fmt.Sprintf("it hangs; chaperone revoke --force --plugin %s, or kill -9 %d", phrase.ShellWord(s.Plugin), out.PID)
		}
		return out
	}
	out.State, out.Mode, out.Kernel = stateReady, status.Mode, "not attached"
	if !status.Ready {
		out.State = stateNotReady
	}
	if status.Kernel.Attached {
		out.Kernel = "attached"
	}
	if status.Process != nil {
		out.Process = status.Process.State
	}
	out.Revoked, out.Partly = hardest(status.Revocations)
	return out
}

// hardest returns the level at which the whole plugin is revoked, and how many
// revocations are of one rule.
func hardest(all []authz.Revocation) (level authz.Level, rules int) {
	rank := map[authz.Level]int{"": 0, authz.LevelPause: 1, authz.LevelQuarantine: 2, authz.LevelHalt: 3}
	for _, r := range all {
		switch {
		case sidecar.Expired(r):
		case r.Rule != "":
			rules++
		case rank[r.Level] > rank[level]:
			level = r.Level
		}
	}
	return level, rules
}

func sidecarsTable(w io.Writer, rows []hostSidecar) {
	row(w, "PLUGIN", "PID", "STATE", "MODE", "REVOKED", "KERNEL", "PROCESS", "SOCKET")
	for _, r := range rows {
		revoked := string(r.Revoked)
		if revoked == "" {
			revoked = "-"
		}
		if r.Partly > 0 {
			revoked += " + " + phrase.Count(r.Partly, "rule")
		}
		row(w, phrase.ShellWord(r.Plugin), strconv.Itoa(r.PID), r.State, dash(r.Mode), revoked, dash(r.Kernel), dash(r.Process), phrase.ShellWord(r.Socket))
		if r.Detail != "" {
			row(w, "", "", r.Detail)
		}
	}
	if len(rows) == 0 {
		fmt.Fprintln(w, "no sidecar runs on this host")
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
