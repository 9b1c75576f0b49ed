package ebpf

import (
	"fmt"
	"io"
	"net"
	"time"
)

// plugin is the test binary in the role of a plugin.
func plugin(args []string) error {
	switch args[0] {
	case "get": // network address: connect, say hello, print the answer
		conn, err := net.DialTimeout(args[1], args[2], 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		fmt.Fprint(conn, "hello")
		conn.(*net.TCPConn).CloseWrite()
		answer, err := io.ReadAll(conn)
		fmt.Printf("%s peer %s", answer, conn.RemoteAddr())
		return err
	}
	return fmt.Errorf("no such plugin: %v", args)
}
