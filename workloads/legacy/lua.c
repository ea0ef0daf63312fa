/* Runs a Lua file: `lua FILE NUMBER`. */
#include <stdio.h>
#include "lauxlib.h"
#include "lua.h"
#include "lualib.h"

int main(int argc, char **argv)
{
    lua_State *state = luaL_newstate();
    luaL_openlibs(state);
    lua_createtable(state, 1, 0);
    lua_pushstring(state, argc > 2 ? argv[2] : "1");
    lua_rawseti(state, -2, 1);
    lua_setglobal(state, "arg");
    if (luaL_dofile(state, argc > 1 ? argv[1] : NULL)) {
        fprintf(stderr, "lua: %s\n", lua_tostring(state, -1));
        return 1;
    }
    lua_close(state);
    return 0;
}
