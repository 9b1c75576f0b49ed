package leases

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// The console is a plugin that holds sessions, each by a name: it reads orders from its
// input and prints an answer for each when it has one. Statements of different sessions
// run at the same time.

// order is one line of the console's input.
type order struct {
	ID      int    `json:"id"`
	Session string `json:"session"` // opened by the first order that names it
	SQL     string `json:"sql"`     // or a command of Redis; "": close the session
}

// answer is one line of the console's output.
type answer struct {
	ID    int      `json:"id"`
	Rows  []string `json:"rows"`
	Code  string   `json:"code"`  // of the database's error
	Level string   `json:"level"` // of the database's error
	Error string   `json:"error"`
}

// connectString is how the plugins of these tests connect, without a password.
func connectString() string {
	return os.Getenv("LEASES_CONNECT") + " sslrootcert=" + os.Getenv("SSL_CERT_FILE")
}

// link is a session's connection to its database.
type link interface {
	query(statement string) (rows []string, err error)
	close() error
}

// runConsole is the console's main. connect opens the connection of a session.
func runConsole(connect func() (link, error)) int {
	var mu sync.Mutex // of the output
	sessions := map[string]chan order{}
	var all sync.WaitGroup
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var o order
		if json.Unmarshal(lines.Bytes(), &o) != nil {
			return 1
		}
		orders := sessions[o.Session]
		if orders == nil {
			orders = make(chan order, 16)
			sessions[o.Session] = orders
			all.Go(func() {
				for a := range serveSession(orders, connect) {
					text, _ := json.Marshal(a)
					mu.Lock()
					fmt.Println(string(text))
					mu.Unlock()
				}
			})
		}
		orders <- o
		if o.SQL == "" {
			close(orders)
			delete(sessions, o.Session)
		}
	}
	for _, orders := range sessions {
		close(orders)
	}
	all.Wait()
	return 0
}

// serveSession carries out the orders of one session and yields their answers.
func serveSession(orders <-chan order, connect func() (link, error)) func(yield func(answer) bool) {
	return func(yield func(answer) bool) {
		var conn link
		for o := range orders {
			var rows []string
			var err error
			if conn == nil && o.SQL != "" {
				conn, err = connect()
			}
			if err == nil && conn != nil {
				if o.SQL == "" {
					err = conn.close()
				} else {
					rows, err = conn.query(o.SQL)
				}
			}
			if !yield(answerOf(o.ID, rows, err)) {
				return
			}
		}
	}
}

// postgresLink is a connection to a PostgreSQL.
type postgresLink struct{ conn *pgconn.PgConn }

func connectPostgres() (link, error) {
	conn, err := pgconn.Connect(context.Background(), connectString())
	if err != nil {
		return nil, err
	}
	return postgresLink{conn}, nil
}

func (l postgresLink) close() error { return l.conn.Close(context.Background()) }

func (l postgresLink) query(sql string) (rows []string, err error) {
	results, err := l.conn.Exec(context.Background(), sql).ReadAll()
	for _, r := range results {
		for _, row := range r.Rows {
			var cells []string
			for _, cell := range row {
				cells = append(cells, string(cell))
			}
			rows = append(rows, strings.Join(cells, "|"))
		}
	}
	return rows, err
}

func answerOf(id int, rows []string, err error) answer {
	a := answer{ID: id, Rows: rows}
	if err != nil {
		a.Error = err.Error()
	}
	if fromDatabase, ok := errors.AsType[*pgconn.PgError](err); ok {
		a.Code, a.Level = fromDatabase.Code, fromDatabase.Severity
		a.Error += "; " + fromDatabase.Detail + "; " + fromDatabase.Hint
	}
	return a
}

// console is the test's end of a console.
type console struct {
	t       *testing.T
	process *scenario.Process
	in      io.Writer
	last    int
}

// startConsole starts the console as the plugin.
func (l *lab) startConsole() *console {
	l.T.Helper()
	return l.startConsoleAs("console")
}

// startConsoleAs starts a console for another database.
func (l *lab) startConsoleAs(name string) *console {
	l.T.Helper()
	cmd := l.pluginCommand(name, l.plugin)
	in := testenv.MustGet(cmd.StdinPipe())(l.T)
	l.T.Cleanup(func() { _ = in.Close() })
	return &console{t: l.T, process: l.StartProcess(cmd), in: in}
}

// begin gives an order and returns what waits for its answer.
func (c *console) begin(session, sql string) (wait func() answer) {
	c.t.Helper()
	c.last++
	o := order{ID: c.last, Session: session, SQL: sql}
	text := testenv.MustGet(json.Marshal(o))(c.t)
	_, err := fmt.Fprintln(c.in, string(text))
	testenv.Must(c.t, err)
	return func() answer {
		c.t.Helper()
		return testenv.Eventually(c.t, fmt.Sprintf("session %s answers %q", session, sql), func() (answer, bool) {
			select {
			case <-c.process.Ended:
				c.t.Fatalf("the plugin has ended:\n%s", c.process.Output.String())
			default:
			}
			return find(c.process.Output.String(), o.ID)
		})
	}
}

func find(output string, id int) (answer, bool) {
	for line := range strings.Lines(output) {
		var a answer
		if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &a) == nil && a.ID == id {
			return a, true
		}
	}
	return answer{}, false
}

// do gives an order and waits for its answer.
func (c *console) do(session, sql string) answer {
	c.t.Helper()
	return c.begin(session, sql)()
}

// rows gives an order that must succeed, and returns its rows.
func (c *console) rows(session, sql string) []string {
	c.t.Helper()
	a := c.do(session, sql)
	if a.Error != "" {
		c.t.Fatalf("session %s, %q: %s\n%s", session, sql, a.Error, c.process.Output.String())
	}
	return a.Rows
}

// refused checks that an answer is an error of the database's own kind that names the
// reason and the decision.
func (c *console) refused(a answer, reason string) {
	c.t.Helper()
	if a.Code == "" || a.Level != "FATAL" || !strings.Contains(a.Error, reason) || !decisionID.MatchString(a.Error) {
		c.t.Errorf("got %+v, want a FATAL error of the database's with %s and the decision", a, reason)
	}
}

// soon is how long what happens at once may take on a busy machine.
const soon = 10 * time.Second
