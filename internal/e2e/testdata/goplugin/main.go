// Command goplugin is a host and a plugin of HashiCorp's go-plugin, the way
// that Terraform, Packer and Vault run theirs.
//
//	goplugin host [-protocol grpc|netrpc] [-mtls] [-multiplex] [-plugins N] COMMAND...
//	goplugin plugin
//
// The host starts N plugins with COMMAND and calls each: over gRPC a call that
// the plugin answers by a call back through the broker, over net/rpc a plain
// one. It prints one line a plugin.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	basic "github.com/hashicorp/go-plugin/examples/basic/shared"
	bidirectional "github.com/hashicorp/go-plugin/examples/bidirectional/shared"
)

// Handshake is what host and plugin agree on.
var handshake = plugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: "BASIC_PLUGIN", MagicCookieValue: "hello"}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "plugin" {
		servePlugin()
		return
	}
	if err := runHost(os.Args[min(2, len(os.Args)):]); err != nil {
		fmt.Println("host:", err)
		os.Exit(1)
	}
}

// counter keeps sums in memory.
type counter struct {
	mu   sync.Mutex
	sums map[string]int64
}

func (c *counter) Get(key string) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sums[key], nil
}

// Put asks the host to add: a call back through the broker.
func (c *counter) Put(key string, value int64, host bidirectional.AddHelper) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum, err := host.Sum(c.sums[key], value)
	c.sums[key] = sum
	return err
}

type greeter struct{}

func (greeter) Greet() string { return "hello" }

type adder struct{}

func (adder) Sum(a, b int64) (int64, error) { return a + b, nil }

func servePlugin() {
	config := &plugin.ServeConfig{HandshakeConfig: handshake, Plugins: plugin.PluginSet{"greeter": &basic.GreeterPlugin{Impl: greeter{}}}}
	if os.Getenv("PLUGIN_TEST_PROTOCOL") == "grpc" {
		config.GRPCServer = plugin.DefaultGRPCServer
		config.Plugins = plugin.PluginSet{"counter": &bidirectional.CounterPlugin{Impl: &counter{sums: map[string]int64{}}}}
	}
	plugin.Serve(config)
}

func runHost(args []string) error {
	flags := flag.NewFlagSet("host", flag.ExitOnError)
	protocol := flags.String("protocol", "grpc", "grpc or netrpc")
	mtls := flags.Bool("mtls", false, "AutoMTLS")
	multiplex := flags.Bool("multiplex", false, "GRPCBrokerMultiplex")
	plugins := flags.Int("plugins", 1, "how many plugins to run at once")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var clients []*plugin.Client
	defer func() {
		for _, c := range clients {
			c.Kill()
		}
	}()
	for range *plugins {
		cmd := exec.Command(flags.Arg(0), flags.Args()[1:]...)
		cmd.Env = append(os.Environ(), "PLUGIN_TEST_PROTOCOL="+*protocol)
		clients = append(clients, plugin.NewClient(&plugin.ClientConfig{
			HandshakeConfig:     handshake,
			Plugins:             plugin.PluginSet{"greeter": &basic.GreeterPlugin{}, "counter": &bidirectional.CounterPlugin{}},
			Cmd:                 cmd,
			AllowedProtocols:    []plugin.Protocol{plugin.ProtocolNetRPC, plugin.ProtocolGRPC},
			AutoMTLS:            *mtls,
			GRPCBrokerMultiplex: *multiplex,
			Stderr:              os.Stderr,
			Logger:              hclog.New(&hclog.LoggerOptions{Output: io.Discard}),
		}))
	}
	for i, c := range clients {
		if err := call(i, c, *protocol); err != nil {
			return fmt.Errorf("plugin %d: %w", i, err)
		}
	}
	return nil
}

func call(i int, c *plugin.Client, protocol string) error {
	conn, err := c.Client()
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if protocol == "netrpc" {
		raw, err := conn.Dispense("greeter")
		if err != nil {
			return fmt.Errorf("dispense: %w", err)
		}
		fmt.Println("plugin", i, raw.(basic.Greeter).Greet())
		return nil
	}
	raw, err := conn.Dispense("counter")
	if err != nil {
		return fmt.Errorf("dispense: %w", err)
	}
	for range 3 {
		if err := raw.(bidirectional.Counter).Put("n", 7, adder{}); err != nil {
			return fmt.Errorf("call with a call back: %w", err)
		}
	}
	sum, err := raw.(bidirectional.Counter).Get("n")
	if err != nil {
		return fmt.Errorf("call: %w", err)
	}
	fmt.Println("plugin", i, "sum", sum)
	return nil
}
