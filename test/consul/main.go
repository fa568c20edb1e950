// Command consul is a Consul server for tests: HashiCorp's own commands, built from the last release
// under the MPL (1.15). Debian packages no Consul, and the store's conformance suite is worth little
// against anything but the real one. It is a Go module of its own so that the server's dependencies
// stay out of the product's go.mod.
package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/consul/command"
	"github.com/hashicorp/consul/command/cli"
	"github.com/hashicorp/consul/version"
	mcli "github.com/mitchellh/cli"
)

func main() {
	ui := &cli.BasicUI{BasicUi: mcli.BasicUi{Writer: os.Stdout, ErrorWriter: os.Stderr}}
	run := &mcli.CLI{
		Name:     "consul",
		Version:  version.GetHumanVersion(),
		Args:     os.Args[1:],
		Commands: command.RegisteredCommands(ui),
	}
	code, err := run.Run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "consul:", err)
		os.Exit(1)
	}
	os.Exit(code)
}
