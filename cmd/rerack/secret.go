package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/secrets"
)

func secretCommand(g *global) *cobra.Command {
	c := &cobra.Command{Use: "secret", Short: "Credentials of devices, kept on the server's machine", GroupID: "service"}
	var username string
	set := &cobra.Command{Use: "set NAME", Short: "Store a user and password; the password is read from standard input", Args: cobra.ExactArgs(1),
		Example: "  rerack secret set rack-a-bmc --username root < password.txt",
		RunE: func(c *cobra.Command, args []string) error {
			pw, err := readPassword(c)
			if err != nil {
				return err
			}
			return g.secrets().Set(args[0], secrets.Credential{User: username, Password: bmc.NewSecret(pw)})
		}}
	set.Flags().StringVar(&username, "username", "", "user name")
	list := &cobra.Command{Use: "list", Short: "Names of the stored secrets", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			names, err := g.secrets().Names()
			if err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), names, func(w io.Writer) {
				for _, n := range names {
					fmt.Fprintln(w, n)
				}
			})
		}}
	c.AddCommand(set, list)
	return c
}

func (g *global) secrets() *secrets.File {
	return secrets.Open(filepath.Join(g.dataDir, "secrets.json"))
}

func readPassword(c *cobra.Command) (string, error) {
	if term.IsTerminal(int(os.Stdin.Fd())) {
		fmt.Fprint(c.ErrOrStderr(), "Password: ")
		b, err := term.ReadPassword(int(os.Stdin.Fd()))
		fmt.Fprintln(c.ErrOrStderr())
		return string(b), err
	}
	line, err := bufio.NewReader(io.LimitReader(c.InOrStdin(), 4096)).ReadString('\n')
	if err != nil && line == "" {
		return "", &fault.Error{Kind: fault.Invalid, What: "no password on standard input"}
	}
	return strings.TrimRight(line, "\r\n"), nil
}
